"""Config keys with a new name: the command line rejects the old name; stored configurations of older runs are translated."""

from collections.abc import Mapping
from typing import Any

from src.runtime.errors import UserError

RENAMED = {
    "data.window": "data.packing_window",
    "data.global_batch": "data.global_batch_size",
    "data.row_tokens": "data.max_seq_len",
    "data.validate": "data.val_samples",
    "data.answers": "data.val_generations",
    "trainer.recompute": "trainer.activation_checkpointing",
    "trainer.check_every": "trainer.val_every",
    "trainer.keep": "trainer.keep_last",
    "trainer.nonfinite": "trainer.on_nonfinite",
    "row_tokens": "max_seq_len",
}
RENAMED_VALUES = {("trainer.activation_checkpointing", "cheap"): "selective"}


def reject_renamed(overrides: list[str]) -> None:
    """Raises `UserError` for an override with an old key or an old value; the message contains the override to write instead."""
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if key in RENAMED:
            new = RENAMED[key]
            raise UserError(f"{key}: renamed to {new}; write {new}{equals}{RENAMED_VALUES.get((new, value), value)}")
        if (key, value) in RENAMED_VALUES:
            raise UserError(f"{key}={value}: renamed; write {key}={RENAMED_VALUES[key, value]}")


def translate(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A stored configuration with the present keys and values, in the same order."""
    translated: dict[str, Any] = {}
    for key, value in config.items():
        path = RENAMED.get(f"{prefix}{key}", f"{prefix}{key}")
        if isinstance(value, Mapping):
            value = translate(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            value = RENAMED_VALUES.get((path, value), value)
        translated[path.rpartition(".")[2]] = value
    return translated
