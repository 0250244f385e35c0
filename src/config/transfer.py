"""Configuration of `python -m src.transfer`."""

from dataclasses import dataclass
from typing import Any

from src.runtime.schema import check_choice

PROTOCOLS = ("probe", "knn", "few_shot", "finetune", "paper")


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

    @property
    def benchmark_names(self) -> list[str]:
        """The sets of `benchmarks`, with the names of `benchmark_lists` replaced by their sets; each set once."""
        lists = self.benchmark_lists
        return list(dict.fromkeys(name for entry in to_list(self.benchmarks) for name in lists.get(entry, [entry])))


def check_transfer_config(config: TransferConfig) -> None:
    for protocol in to_list(config.protocol):
        check_choice("protocol", protocol, PROTOCOLS)
    check_choice("checkpoint", config.checkpoint, ("best", "last"))


def to_list(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
