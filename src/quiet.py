"""Libraries speak only when something is wrong: what is printed is for the person who waits."""

import logging
import warnings


def quiet() -> None:
    from transformers.utils import logging as transformers

    transformers.disable_progress_bar()  # loading the small files of a small model
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices that there are not, tips
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # what peft still calls
    warnings.filterwarnings("ignore", message=".*treespec.*")  # what lightning still calls
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of a class token: one row, of any stride
