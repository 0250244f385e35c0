"""Configuration of `python -m src.transfer`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class FineTuneConfig:
    steps: int
    batch: int
    lr: list[float]
    warmup: int
    weight_decay: float


@dataclass
class PaperConfig:
    epochs: int
    batch: int
    lr: list[float]
    warmup: float
    weight_decay: float


@dataclass
class TransferConfig:
    encoder: Any  # a name or a list of names; so are benchmarks and protocol
    benchmarks: Any
    protocol: Any
    name: str | None
    outputs: str
    raw: str
    checkpoint: str
    accelerator: str
    batch: int
    threads: int
    seed: int
    seeds: int
    resamples: int
    finetune: FineTuneConfig
    paper: PaperConfig
    benchmark_lists: dict[str, list[str]]
