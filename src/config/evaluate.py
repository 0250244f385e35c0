"""Configuration of `python -m src.evaluate`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class EvaluateConfig:
    run: str | None
    checkpoint: str
    outputs: str
    data_root: str | None
    benchmarks: Any  # a name, a list of names, or null
    images: list[str]
    limit: int
    batch: int
    max_new_tokens: int
    temperature: float
    top_p: float
    max_seq_len: int | None
    accelerator: str
    resamples: int
    seed: int
    predictions: str | None
    name: str | None
