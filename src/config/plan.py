"""Configuration of `python -m src.plan`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from src.config.train import TrainConfig
from src.config.train_rules import check_values
from src.runtime.errors import UserError


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


def check_plan_config(config: PlanConfig) -> None:
    """Checks values only: files need not exist yet when a run is planned."""
    check_values(config)
    assumed = config.plan
    if min(assumed.images, assumed.supervised, assumed.reserve) < 0 or assumed.supervised > assumed.text or assumed.text < 1:
        raise UserError(
            "an average sample has plan.images >= 0 and plan.text >= plan.supervised >= 0, and plan.reserve is at least 0, found "
            f"images={assumed.images}, text={assumed.text}, supervised={assumed.supervised}, reserve={assumed.reserve:g}"
        )
    if assumed.tflops <= 0 or min(assumed.memory, default=1) <= 0:
        raise UserError(f"plan.tflops and each of plan.memory must be above 0, found {assumed.tflops:g} and {assumed.memory}")
