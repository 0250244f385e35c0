"""Silences library messages that do not help a user, each by name. All other warnings are shown."""

import logging
import os
import warnings


def silence_libraries() -> None:
    """Call this once per process, before the first model is built."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # unused devices, ranks, advertisements
    # `src.model.weight_files.raise_mismatches` reports unknown and missing tensors instead.
    logging.getLogger("transformers.modeling_utils").addFilter(_is_not_load_report)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers reads it at import; downloads use `src.runtime.progress`
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft reads `is_gradient_checkpointing`
    warnings.filterwarnings("ignore", message=".*treespec.*")  # Lightning calls a deprecated function of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The batch norms of an encoder stay in evaluation mode on purpose (src/model/vision.py).
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    warnings.filterwarnings(
        "ignore", message="Grad strides do not match bucket view strides"
    )  # class token: a single row may have any stride


def _is_not_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
