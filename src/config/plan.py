"""Configuration of `python -m src.plan`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from src.config.train import TrainConfig
from src.config.train_rules import check_values
from src.runtime.errors import UserError

GPU = ("H200", 474.0)  # name, TFLOP/s that training sustains; see conf/plan.yaml
CPU = ("CPU with two cores", 0.15)


@dataclass
class PlanAssumptions:
    images: int = MISSING
    text: int = MISSING
    supervised: int = MISSING
    gpu: str | None = MISSING
    tflops: float | None = MISSING
    memory: list[float] = MISSING
    reserve: float = MISSING


@dataclass
class PlanConfig(TrainConfig):
    plan: PlanAssumptions = field(default_factory=PlanAssumptions)

    @property
    def device(self) -> tuple[str, float]:
        """Name of a device and the TFLOP/s that training is expected to sustain on it."""
        name, tflops = CPU if self.trainer.accelerator == "cpu" else GPU
        return self.plan.gpu or name, tflops if self.plan.tflops is None else self.plan.tflops


def check_plan_config(config: PlanConfig) -> None:
    """Checks values only: files need not exist yet when a run is planned."""
    check_values(config)
    assumed = config.plan
    if min(assumed.images, assumed.supervised, assumed.reserve) < 0 or assumed.supervised > assumed.text or assumed.text < 1:
        raise UserError(
            "an average sample has plan.images >= 0 and plan.text >= plan.supervised >= 0, and plan.reserve is at least 0, found "
            f"images={assumed.images}, text={assumed.text}, supervised={assumed.supervised}, reserve={assumed.reserve:g}"
        )
    if config.device[1] <= 0 or min(assumed.memory, default=1) <= 0:
        raise UserError(f"plan.tflops and each of plan.memory must be above 0, found {config.device[1]:g} and {assumed.memory}")
