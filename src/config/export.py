"""Configuration of `python -m src.export`."""

from dataclasses import dataclass

from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice

PARTS = ("hf", "adapter", "timm", "space")


@dataclass
class ExportConfig:
    run: str
    out: str
    parts: list[str]
    checkpoint: str
    dtype: str | None
    push: str | None
    outputs: str


def check_export_config(config: ExportConfig, *, images: bool) -> None:
    """Raises `UserError` for settings that cannot work. `images`: whether the run was trained with images."""
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"parts={part!r} is unknown{suggest(part, PARTS)}")
    check_choice("checkpoint", config.checkpoint, ("best", "last"))
    if config.dtype is not None:
        check_choice("dtype", config.dtype, ("float32", "bfloat16", "float16"))
    if not images and {"hf", "space"} & set(config.parts):
        raise UserError(f"run '{config.run}' was trained without images (data.images=false); export only its adapter with parts=[adapter]")
    if "space" in config.parts and "hf" not in config.parts:
        raise UserError("parts=: the part space runs the part hf; add hf to parts=")
