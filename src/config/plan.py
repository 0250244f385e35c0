"""Configuration of `python -m src.plan`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from src.config.train import TrainConfig

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
