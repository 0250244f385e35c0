"""Configuration of `python -m src.export`."""

from dataclasses import dataclass


@dataclass
class ExportConfig:
    run: str
    out: str
    parts: list[str]
    checkpoint: str
    dtype: str | None
    push: str | None
    outputs: str
