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
    temperature: float = field(default=1.0, metadata=bounded(0.1))
    exclude: dict[str, list[str]] | None = None  # `exclude` and `max_per_subset` are absent in the config.yaml of older runs
    max_per_subset: dict[str, int] | None = None

    def selection(self, source: str) -> dict[str, Any]:
        """Which records of a source the mix uses, as arguments of `src.data.train_val_split.split_source`."""
        return {
            "decontaminate": self.decontaminate,
            "exclude": (self.exclude or {}).get(source, []),
            "max_per_subset": (self.max_per_subset or {}).get(source),
        }

    @property
    def sampling_weights(self) -> dict[str, float]:
        """share ** (1 / temperature) of each source that the stream draws from: those in `only` (or all), without `leave_out`."""
        sources = [source for source in self.shares if source in self.only or not self.only]
        return {
            source: self.shares[source] ** (1 / self.temperature)
            for source in sources
            if self.shares[source] > 0 and source not in self.leave_out
        }


@dataclass
class DataConfig:
    root: str
    packing_window: int = field(metadata=bounded(1))
    global_batch_size: int = field(metadata=bounded(1))
    max_seq_len: int = field(metadata=bounded(16))
    workers: int = field(metadata=bounded(0))
    exact_decode: bool
    images: bool
    val_samples: int = field(metadata=bounded(0))
    val_generations: int = field(metadata=bounded(0))
    cache: str = "data/cache"  # `cache` and `cache_gb` are absent in the config.yaml of older runs
    cache_gb: float = field(default=200, metadata=bounded(0))
    shuffle: str = field(default="global", metadata=choices("global", "blocks"))  # absent in the config.yaml of older runs


@dataclass
class PromptConfig:
    template: str = field(default="plain", metadata=choices("plain", "chat"))


@dataclass
class LoraSettings:
    rank: int = field(metadata=bounded(1))
    alpha: int = field(metadata=bounded(1))
    dropout: float = field(metadata=bounded(0, below=1))
    targets: list[str]


@dataclass
class VisionConfig:
    format: str = "scratch"
    path: str = ""
    revision: str = "unverified"
    architecture: str = ""
    image_size: int | None = field(default=None, metadata=bounded(1))
    architecture_kwargs: dict[str, int] = field(default_factory=dict)
    layer: int = -1


@dataclass
class LanguageConfig:
    path: str
    revision: str
    dtype: str = field(metadata=choices("float32", "bfloat16"))
    lora: LoraSettings
    fast: bool = True  # absent in the config.yaml of older runs

    @property
    def checkpointing_choices(self) -> tuple[str, ...]:
        """Values that `trainer.activation_checkpointing` may have; `selective` is part of the fast path."""
        return ACTIVATION_CHECKPOINTING if self.fast else ("none", "full")


@dataclass
class ProjectorConfig:
    kind: str = field(metadata=choices("mlp", "linear"))
    hidden: int = field(metadata=bounded(0))


@dataclass
class LearningRatesConfig:
    vision: float
    projector: float
    language: float


@dataclass
class OptimConfig:
    steps: int | None = field(metadata=bounded(1))
    lr: LearningRatesConfig
    warmup: int = field(metadata=bounded(0))
    schedule: str = field(metadata=choices("cosine", "constant"))
    weight_decay: float = field(metadata=bounded(0))
    betas: list[float]
    clip: float = field(metadata=bounded(0))
    epochs: float | None = None

    @property
    def length(self) -> int:
        """The number of optimizer steps; `src/training/optim.py` has converted epochs to steps by the time this is read."""
        assert self.steps is not None
        return self.steps


@dataclass
class TrainerConfig:
    accelerator: str = field(metadata=choices("cpu", "gpu", "auto"))
    devices: int = field(metadata=bounded(1))
    nodes: int = field(metadata=bounded(1))
    precision: str = field(metadata=choices("32-true", "64-true", "bf16-mixed"))
    accumulate: int = field(metadata=bounded(1))
    activation_checkpointing: str = field(metadata=choices(*ACTIVATION_CHECKPOINTING))
    log_every: int = field(metadata=bounded(1))
    val_every: int = field(metadata=bounded(1))
    keep_last: int = field(metadata=bounded(1))
    on_nonfinite: str = field(default="stop", metadata=choices("stop", "skip"))
    strategy: str = field(default="ddp", metadata=choices("ddp"))
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of lightning.Trainer


@dataclass
class LoggerConfig:
    wandb: str = field(metadata=choices("none", "offline", "online"))
    project: str


@dataclass
class TrainConfig:
    name: str
    seed: int = field(metadata=bounded(0, below=2**32))
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
    prompt: PromptConfig = field(default_factory=PromptConfig)  # absent in the config.yaml of older runs
