"""Configuration of `python -m src.plan`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from src.config.train import TrainConfig


@dataclass
class PlanAssumptions:
    images: int = MISSING
    text: int = MISSING
    supervised: int = MISSING
    gpu: str = MISSING
    tflops: float = MISSING
    memory: list[float] = MISSING
    reserve: float = MISSING


@dataclass
class PlanConfig(TrainConfig):
    plan: PlanAssumptions = field(default_factory=PlanAssumptions)
