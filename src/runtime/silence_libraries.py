"""Silences messages of libraries that tell a user nothing, each by name. All other warnings are shown."""

import logging
import sys
import warnings


def silence_libraries() -> None:
    """Called once per process, before the first model is built."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # unused devices, ranks, tips for other products
    # Unknown and missing tensors are reported by `src.model.weight_files.raise_mismatches`, which stops where they matter.
    logging.getLogger("transformers.modeling_utils").addFilter(_is_no_load_report)
    if "transformers" in sys.modules:  # its import takes seconds, which commands without a model do not need
        from transformers.utils import logging as transformers

        transformers.disable_progress_bar()  # for reading and writing weights; downloads have `src.runtime.progress`
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft reads `is_gradient_checkpointing`
    warnings.filterwarnings("ignore", message=".*treespec.*")  # Lightning calls a deprecated function of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The batch norms of an encoder stay in evaluation mode on purpose (src/model/vision.py).
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of a class token: one row, of any stride


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
