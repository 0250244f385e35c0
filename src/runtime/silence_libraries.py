"""Silences library messages that do not help a user, each by name. All other warnings are shown."""

import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Call this before the first model is built, and again after Lightning is imported, which sets the levels of its loggers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # unused devices, ranks, advertisements
    # `src.model.weight_files.raise_mismatches` reports unknown and missing tensors instead.
    logging.getLogger("transformers.modeling_utils").addFilter(_is_not_load_report)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # of weights, read at import; downloads use `src.runtime.progress`
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers

        transformers.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft reads `is_gradient_checkpointing`
    warnings.filterwarnings("ignore", message=".*treespec.*")  # Lightning calls a deprecated function of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a login node of a cluster may train, too
    # The batch norms of an encoder stay in evaluation mode on purpose (src/model/vision.py).
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    warnings.filterwarnings(
        "ignore", message="Grad strides do not match bucket view strides"
    )  # class token: a single row may have any stride


def _is_not_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
