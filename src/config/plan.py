"""Configuration of `python -m src.plan`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from src.config.train import TrainConfig


@dataclass(kw_only=True)
class PlanAssumptions:
    images: int = MISSING
    text: int = MISSING
    supervised: int = MISSING
    gpu: str = MISSING
    tflops: float = MISSING
    memory: list[float] = MISSING
    reserve: float = MISSING


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    plan: PlanAssumptions = field(default_factory=PlanAssumptions)
