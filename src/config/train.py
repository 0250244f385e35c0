"""Configuration of `python -m src.train`. `src/config/train_rules.py` holds the rules that concern several fields or the disk."""

from dataclasses import dataclass, field
from typing import Any

from src.config.callbacks import CallbacksConfig
from src.config.fields import bounded, choices

ACTIVATION_CHECKPOINTING = ("none", "selective", "full")  # see src/model/fast/recompute.py


@dataclass
class MixConfig:
    shares: dict[str, float]
    decontaminate: bool
    only: list[str] = field(default_factory=list)
    leave_out: list[str] = field(default_factory=list)
    temperature: float = bounded(0.1, default=1.0)

    @property
    def sampling_weights(self) -> dict[str, float]:
        """share ** (1 / temperature) of each source that the stream draws from: those in `only` (or all), without `leave_out`."""
        sources = [source for source in self.shares if source in self.only or not self.only]
        return {
            source: self.shares[source] ** (1 / self.temperature)
            for source in sources
            if self.shares[source] > 0 and source not in self.leave_out
        }


@dataclass(kw_only=True)
class DataConfig:
    root: str
    packing_window: int = bounded(1)
    global_batch_size: int = bounded(1)
    max_seq_len: int = bounded(16)
    workers: int = bounded(0)
    exact_decode: bool
    images: bool
    val_samples: int = bounded(0)
    val_generations: int = bounded(0)
    cache: str = "data/cache"  # `cache` and `cache_gb` are absent in the config.yaml of older runs
    cache_gb: float = bounded(0, default=200)


@dataclass(kw_only=True)
class LoraSettings:
    rank: int = bounded(1)
    alpha: int = bounded(1)
    dropout: float = bounded(0, below=1)
    targets: list[str]


@dataclass
class VisionConfig:
    format: str = "scratch"
    path: str = ""
    revision: str = "unverified"
    architecture: str = ""
    image_size: int | None = bounded(1, default=None)
    architecture_kwargs: dict[str, int] = field(default_factory=dict)
    layer: int = -1


@dataclass(kw_only=True)
class LanguageConfig:
    path: str
    revision: str
    dtype: str = choices("float32", "bfloat16")
    lora: LoraSettings
    fast: bool = True  # absent in the config.yaml of older runs

    @property
    def checkpointing_choices(self) -> tuple[str, ...]:
        """Values that `trainer.activation_checkpointing` may have; `selective` is part of the fast path."""
        return ACTIVATION_CHECKPOINTING if self.fast else ("none", "full")


@dataclass
class ProjectorConfig:
    kind: str = choices("mlp", "linear")
    hidden: int = bounded(0)


@dataclass
class LearningRatesConfig:
    vision: float
    projector: float
    language: float


@dataclass(kw_only=True)
class OptimConfig:
    steps: int | None = bounded(1)
    lr: LearningRatesConfig
    warmup: int = bounded(0)
    schedule: str = choices("cosine", "constant")
    weight_decay: float = bounded(0)
    betas: list[float]
    clip: float = bounded(0)
    epochs: float | None = None

    @property
    def length(self) -> int:
        """The number of optimizer steps; `src/training/optim.py` has converted epochs to steps by the time this is read."""
        assert self.steps is not None
        return self.steps


@dataclass(kw_only=True)
class TrainerConfig:
    accelerator: str = choices("cpu", "gpu", "auto")
    devices: int = bounded(1)
    nodes: int = bounded(1)
    precision: str = choices("32-true", "64-true", "bf16-mixed")
    accumulate: int = bounded(1)
    activation_checkpointing: str = choices(*ACTIVATION_CHECKPOINTING)
    log_every: int = bounded(1)
    val_every: int = bounded(1)
    keep_last: int = bounded(1)
    on_nonfinite: str = choices("stop", "skip", default="stop")
    strategy: str = choices("ddp", default="ddp")
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of lightning.Trainer


@dataclass(kw_only=True)
class LoggerConfig:
    wandb: str = choices("none", "offline", "online")
    project: str


@dataclass(kw_only=True)
class TrainConfig:
    name: str
    seed: int = bounded(0, below=2**32)
    outputs: str
    mix: MixConfig
    data: DataConfig
    vision: VisionConfig
    projector: ProjectorConfig
    language: LanguageConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    init: str | None = None  # absent in the config.yaml of older runs
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
