"""Configuration of `python -m src.export`."""

from dataclasses import dataclass


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
