"""Configuration of `python -m src.export`."""

from dataclasses import dataclass

from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice

PARTS = ("hf", "adapter", "timm", "space")
MIN_REASON_WORDS = 5


@dataclass
class PushConfig:
    repository: str | None
    credentialed: str | None


@dataclass
class ExportConfig:
    run: str
    out: str
    parts: list[str]
    checkpoint: str
    dtype: str | None
    push: PushConfig
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


def check_credentialed_push(push: PushConfig, sources: list[str]) -> None:
    """Raises `UserError` for an upload of what is derived from the credentialed `sources` without a reason.

    A sentence is at least five words, so that no `yes` passes.
    """
    if push.repository and sources and len((push.credentialed or "").split()) < MIN_REASON_WORDS:
        raise UserError(
            f"push={push.repository}: the run was trained on credentialed data ({', '.join(sources)}), and what is derived from it "
            "may be shared only under the same agreement; leave push= out, or state in a sentence why this upload is permitted with "
            "push.credentialed='...', which export.json and the cards will hold"
        )
