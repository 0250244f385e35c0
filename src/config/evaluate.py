"""Configuration of `python -m src.evaluate`."""

from dataclasses import dataclass, field
from typing import Any

from src.config.fields import bounded, check_fields
from src.runtime.errors import UserError
from src.runtime.schema import check_choice


@dataclass
class JudgeConfig:
    url: str | None
    model: str | None
    budget: int | None = field(metadata=bounded(1))
    timeout: float = field(metadata=bounded(0.001))


@dataclass
class EvaluateConfig:
    run: str | None  # a name, or a glob such as sweep/*
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
    judge: JudgeConfig

    @property
    def benchmark_names(self) -> list[str]:
        return [self.benchmarks] if isinstance(self.benchmarks, str) else self.benchmarks or []


def check_evaluate_config(config: EvaluateConfig) -> None:
    """Raises `UserError` for settings that contradict each other or are out of range."""
    if (config.run is None) == (config.predictions is None):
        raise UserError("run, predictions: exactly one is needed; give run=NAME of a trained model or predictions=FILE")
    if (config.judge.url is None) != (config.judge.model is None):
        raise UserError("judge.url, judge.model: only one is given; give both, or none to score without a judge")
    if config.judge.url is not None and config.predictions is None:
        raise UserError("judge.url: a judge reads saved predictions; give predictions=outputs/NAME/predictions/BENCHMARK.real.jsonl")
    if config.judge.url is not None and not config.judge.url.startswith(("http://", "https://")):
        raise UserError(f"judge.url={config.judge.url}: not an address; give http(s)://HOST/v1 of an OpenAI-compatible server")
    check_fields(config)
    check_choice("checkpoint", config.checkpoint, ("best", "last"))
    if config.temperature < 0 or not 0 < config.top_p <= 1:
        raise UserError(f"temperature={config.temperature:g}, top_p={config.top_p:g}: give temperature >= 0 and 0 < top_p <= 1")
