"""Configuration of `python -m src.report`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ReportConfig:
    runs: Any  # a name, a glob, or a list of them
    outputs: str
    out: str | None
    title: str | None
    baseline: str | None
    blind: str | None
    examples: int
    resamples: int
    seed: int
