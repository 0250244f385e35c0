"""Configuration of `python -m src.train`, and the rules that a type cannot state."""

import math
from dataclasses import dataclass, field, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from src.config.callbacks import CallbacksConfig, check_callbacks
from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice

ACTIVATION_CHECKPOINTING = ("none", "selective", "full")  # see src/model/fast/recompute.py


@dataclass
class MixConfig:
    shares: dict[str, float]
    decontaminate: bool
    only: list[str] = field(default_factory=list)
    leave_out: list[str] = field(default_factory=list)
    temperature: float = 1.0

    @property
    def drawn(self) -> dict[str, float]:
        """Share of each source that the stream draws from: those of `only`, or all, without `leave_out`; to the power 1 / temperature."""
        kept = {source: share for source, share in self.shares.items() if share > 0 and (source in self.only or not self.only)}
        return {source: share ** (1 / self.temperature) for source, share in kept.items() if source not in self.leave_out}


@dataclass
class DataConfig:
    root: str
    packing_window: int
    global_batch_size: int
    max_seq_len: int
    workers: int
    exact_decode: bool
    images: bool
    val_samples: int
    val_generations: int
    cache: str = "data/cache"  # runs of before have neither
    cache_gb: float = 200


@dataclass
class LoraSettings:
    rank: int
    alpha: int
    dropout: float
    targets: list[str]


@dataclass
class VisionConfig:
    format: str = "scratch"
    path: str = ""
    revision: str = "unverified"
    architecture: str = ""
    image_size: int | None = None
    architecture_kwargs: dict[str, int] = field(default_factory=dict)
    layer: int = -1


@dataclass
class LanguageConfig:
    path: str
    revision: str
    dtype: str
    lora: LoraSettings


@dataclass
class ProjectorConfig:
    kind: str
    hidden: int


@dataclass
class LearningRatesConfig:
    vision: float
    projector: float
    language: float


@dataclass
class OptimConfig:
    steps: int | None
    lr: LearningRatesConfig
    warmup: int
    schedule: str
    weight_decay: float
    betas: list[float]
    clip: float
    epochs: float | None = None

    @property
    def length(self) -> int:
        """Optimizer steps; epochs have been turned into steps by then (src/training/optim.py)."""
        assert self.steps is not None
        return self.steps


@dataclass
class TrainerConfig:
    accelerator: str
    devices: int
    nodes: int
    precision: str
    accumulate: int
    activation_checkpointing: str
    log_every: int
    val_every: int
    keep_last: int
    on_nonfinite: str = "stop"
    strategy: str = "ddp"
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of lightning.Trainer


@dataclass
class LoggerConfig:
    wandb: str
    project: str


@dataclass
class TrainConfig:
    name: str
    seed: int
    outputs: str
    mix: MixConfig
    data: DataConfig
    vision: VisionConfig
    projector: ProjectorConfig
    language: LanguageConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    init: str | None = None  # runs of before it have none
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)


def check_train_config(config: TrainConfig) -> None:
    """That a run can start; raises one `UserError` that names the key, what was found and what is allowed."""
    check_values(config)
    missing = missing_files(config)
    if missing:
        raise UserError("; ".join(missing))


def check_values(config: TrainConfig) -> None:
    """Rules over the values alone, whatever is on the disk."""
    check_finite(config)
    data, trainer = config.data, config.trainer
    if not config.mix.shares or any(share < 0 for share in config.mix.shares.values()) or sum(config.mix.shares.values()) <= 0:
        raise UserError(f"mix.shares must be at least 0 each and positive for at least one source, found {config.mix.shares}")
    for key in ("only", "leave_out"):
        for source in getattr(config.mix, key):
            if source not in config.mix.shares:
                raise UserError(f"mix.{key} names '{source}', which mix.shares does not have{suggest(source, config.mix.shares)}")
    if config.mix.temperature < 0.1:
        raise UserError(
            f"mix.temperature must be at least 0.1, found {config.mix.temperature:g}; 1 keeps the shares, larger evens them out"
        )
    if not config.mix.drawn:
        raise UserError("mix.only and mix.leave_out leave no source with a positive share to draw from")
    for key, least in MINIMUM.items():
        value = attrgetter(key)(config)
        if value is not None and value < least:
            raise UserError(f"{key} must be at least {least}, found {value}")
    if data.packing_window % data.global_batch_size:
        raise UserError(f"data.packing_window={data.packing_window} must be a multiple of data.global_batch_size={data.global_batch_size}")
    ranks = trainer.devices * trainer.nodes
    if data.global_batch_size % (ranks * trainer.accumulate):
        raise UserError(
            f"data.global_batch_size={data.global_batch_size} must be divisible by trainer.devices x trainer.nodes x trainer.accumulate "
            f"= {ranks} x {trainer.accumulate}"
        )
    reject_unsupported(config)
    check_choice("trainer.activation_checkpointing", trainer.activation_checkpointing, ACTIVATION_CHECKPOINTING)
    check_choice("trainer.on_nonfinite", trainer.on_nonfinite, ("stop", "skip"))
    check_choice("trainer.strategy", trainer.strategy, ("ddp",))
    check_choice("trainer.accelerator", trainer.accelerator, ("cpu", "gpu", "auto"))
    check_choice("trainer.precision", trainer.precision, ("32-true", "64-true", "bf16-mixed"))
    check_choice("optim.schedule", config.optim.schedule, ("cosine", "constant"))
    check_choice("projector.kind", config.projector.kind, ("mlp", "linear"))
    check_choice("language.dtype", config.language.dtype, ("float32", "bfloat16"))
    check_choice("logger.wandb", config.logger.wandb, ("none", "offline", "online"))
    check_callbacks(config.callbacks)
    if (config.optim.steps is None) == (config.optim.epochs is None):
        raise UserError(f"give one of optim.steps={config.optim.steps} and optim.epochs={config.optim.epochs}, and set the other to null")
    if config.optim.epochs is not None and config.optim.epochs <= 0:
        raise UserError(f"optim.epochs must be above 0, found {config.optim.epochs:g}")
    if config.optim.steps is not None and config.optim.warmup >= config.optim.steps:
        raise UserError(f"optim.warmup={config.optim.warmup} must be smaller than optim.steps={config.optim.steps}")
    if len(config.optim.betas) != 2 or not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(f"optim.betas must be two numbers from 0 to below 1, found {config.optim.betas}")
    if not Path(config.name).parts or Path(config.name).is_absolute() or ".." in Path(config.name).parts:
        raise UserError(f"name={config.name!r} must be the name of a folder inside outputs={config.outputs}")
    rates = vars(config.optim.lr)
    if all(rate == 0 for rate in rates.values()) or min(rates.values()) < 0:
        raise UserError(f"optim.lr needs at least one positive learning rate (0 freezes a part), found {rates}")
    if config.seed >= 2**32:
        raise UserError(f"seed must be below 2^32, found {config.seed}")
    if config.language.lora.dropout >= 1:
        raise UserError(f"language.lora.dropout must be below 1, found {config.language.lora.dropout:g}")
    if not config.language.lora.targets:
        raise UserError("language.lora.targets must name a linear layer; optim.lr.language=0 leaves the language model as it is")


def check_finite(config: Any, prefix: str = "") -> None:
    """YAML reads nan and inf as numbers, and no comparison finds a nan."""
    items: Any = vars(config) if is_dataclass(config) else config if isinstance(config, dict) else dict(enumerate(config))
    for key, value in items.items():
        if isinstance(value, dict | list) or is_dataclass(value):
            check_finite(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{key} must be a finite number, found {value}")


def reject_unsupported(config: TrainConfig) -> None:
    """What others offer and this project does not, with the reason."""
    if any(word in config.language.dtype.lower() for word in ("4bit", "int4", "nf4", "fp4")):
        raise UserError(
            f"language.dtype={config.language.dtype}: 4-bit bases are refused, because adapters trained on rounded weights do not fit the "
            "weights that are exported; use bfloat16, and python -m src.plan says with which trainer.activation_checkpointing it fits your device"
        )
    if "fsdp" in config.trainer.strategy.lower():
        raise UserError(
            f"trainer.strategy={config.trainer.strategy}: FSDP is refused, because a frozen 7B fits one device and only what trains needs "
            "to be exchanged; set trainer.strategy=ddp"
        )


MINIMUM = {
    "seed": 0,
    "data.packing_window": 1,
    "data.global_batch_size": 1,
    "data.max_seq_len": 16,
    "data.workers": 0,
    "data.val_samples": 0,
    "data.val_generations": 0,
    "data.cache_gb": 0,
    "vision.image_size": 1,
    "projector.hidden": 0,
    "language.lora.rank": 1,
    "language.lora.alpha": 1,
    "language.lora.dropout": 0,
    "optim.steps": 1,
    "optim.warmup": 0,
    "optim.weight_decay": 0,
    "optim.clip": 0,
    "trainer.devices": 1,
    "trainer.nodes": 1,
    "trainer.accumulate": 1,
    "trainer.log_every": 1,
    "trainer.val_every": 1,
    "trainer.keep_last": 1,
}


def missing_files(config: TrainConfig) -> list[str]:
    """What a run needs and the disk does not have, one clause each: shards of the mix, local weights."""
    missing = []
    root, remote = Path(config.data.root), "://" in config.data.root  # what stands at an address is asked for when it is opened
    absent = [source for source in config.mix.drawn if not remote and not (root / source / "manifest.json").exists()]
    if absent:
        built = sorted(path.parent.name for path in root.glob("*/manifest.json"))
        meant = suggest(absent[0], built) if len(absent) == 1 and built else f"; it holds {', '.join(built) or 'no source'}"
        missing.append(
            f"mix.shares names {', '.join(absent)}, but data.root={root} has no such shards{meant}; build them with "
            f"`make shards SOURCES={','.join(absent)} RAW=<raw folder> OUT={root}` or set their share to 0"
        )
    for key, path in (("vision.path", config.vision.path), ("language.path", config.language.path)):
        if path.startswith((".", "/", "data/")) and not Path(path).exists():
            missing.append(f"{key}={path} does not exist; give a local folder or a hub id")
    if config.init:
        kind, _, name = config.init.partition(":")
        if kind != "run" or not name:
            raise UserError(f"init={config.init} must be run:<name of a run>, or null")
        if not (Path(config.outputs) / name / "checkpoints").is_dir():
            missing.append(f"init={config.init}, but {config.outputs}/{name} holds no checkpoint; train that run first, or set init=null")
    return missing
