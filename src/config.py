"""Hydra composes, a dataclass decides: every key that a command understands, with its type.

`typed` turns the composed YAML into these dataclasses once, at the door; `validate` checks what a type cannot say.
The meaning of each key stands as a comment in the YAML files under `conf/`. Nothing heavy is imported, so that a mistake is told at once.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from src.errors import UserError, nearest

RECOMPUTE = ("none", "cheap", "full")  # see src/model/recompute.py


@dataclass
class Mix:
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
class Data:
    root: str
    window: int
    global_batch: int
    row_tokens: int
    workers: int
    exact_decode: bool
    images: bool
    validate: int
    answers: int
    cache: str = "data/cache"  # runs of before have neither
    cache_gb: float = 200


@dataclass
class Lora:
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
class Language:
    path: str
    revision: str
    dtype: str
    lora: Lora


@dataclass
class Projector:
    kind: str
    hidden: int


@dataclass
class LearningRates:
    vision: float
    projector: float
    language: float


@dataclass
class Optim:
    steps: int | None
    lr: LearningRates
    warmup: int
    schedule: str
    weight_decay: float
    betas: list[float]
    clip: float
    epochs: float | None = None

    @property
    def length(self) -> int:
        """Optimizer steps; epochs have been turned into steps by then (src/training/epochs.py)."""
        assert self.steps is not None
        return self.steps


@dataclass
class Trainer:
    accelerator: str
    devices: int
    nodes: int
    precision: str
    accumulate: int
    recompute: str
    log_every: int
    check_every: int
    keep: int
    nonfinite: str = "stop"
    strategy: str = "ddp"


@dataclass
class Logger:
    wandb: str
    project: str


@dataclass
class Train:
    name: str
    seed: int
    outputs: str
    mix: Mix
    data: Data
    vision: VisionConfig
    projector: Projector
    language: Language
    optim: Optim
    trainer: Trainer
    logger: Logger
    init: str | None = None  # runs of before it have none


@dataclass
class Planned:
    images: int = MISSING
    text: int = MISSING
    supervised: int = MISSING
    gpu: str = MISSING
    tflops: float = MISSING
    memory: list[float] = MISSING
    reserve: float = MISSING


@dataclass
class Plan(Train):
    plan: Planned = field(default_factory=Planned)


@dataclass
class Evaluate:
    run: str | None
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
    row_tokens: int | None
    accelerator: str
    resamples: int
    seed: int
    predictions: str | None
    name: str | None


@dataclass
class FineTune:
    steps: int
    batch: int
    lr: list[float]
    warmup: int
    weight_decay: float


@dataclass
class Transfer:
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
    finetune: FineTune


@dataclass
class Report:
    runs: Any  # a name, a glob, or a list of them
    outputs: str
    out: str | None
    title: str | None
    baseline: str | None
    blind: str | None
    examples: int
    resamples: int
    seed: int


@dataclass
class Ask:
    model: str
    question: str | None
    image: Any
    frame: int | None
    batch: str | None
    out: str | None
    json: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int
    checkpoint: str
    accelerator: str
    outputs: str


@dataclass
class Export:
    run: str
    out: str
    parts: list[str]
    checkpoint: str
    dtype: str | None
    push: str | None
    outputs: str


@dataclass
class Demo:
    model: str
    host: str
    port: int
    auth: str | None
    examples: str | None
    max_megapixels: float
    max_megabytes: float
    queue: int
    checkpoint: str
    accelerator: str
    outputs: str


Schema = TypeVar("Schema")


def typed(schema: type[Schema], config: DictConfig) -> Schema:
    """The composed YAML as a checked dataclass; a wrong key, a wrong type or a missing value is named in the error."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        raise UserError(_unknown_key(schema, error)) from None
    except MissingMandatoryValue as error:
        raise UserError(f"config key '{error.full_key}' has no value; give {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        said = str(error).splitlines()[0]
        raise UserError(f"config key '{error.full_key}': {said}") from None


def _unknown_key(schema: type, error: ConfigKeyError) -> str:
    full = str(error.full_key)
    parent = error.parent_node
    allowed = [str(key) for key in parent] if parent is not None else [one.name for one in fields(schema)]
    return f"unknown config key '{full}'{nearest(full.rpartition('.')[2], allowed)}"


def plain(config: Any) -> dict:
    """A dataclass as nested dicts of plain values, fit for YAML, JSON and `torch.load(weights_only=True)`."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)  # type: ignore[return-value]


def validate(config: Train) -> None:
    """That a run can start; raises one `UserError` that names the key, what was found and what is allowed."""
    sound(config)
    missing = missing_files(config)
    if missing:
        raise UserError("; ".join(missing))


def sound(config: Train) -> None:
    """Rules over the values alone, whatever is on the disk."""
    finite(config)
    data, trainer = config.data, config.trainer
    if not config.mix.shares or any(share < 0 for share in config.mix.shares.values()) or sum(config.mix.shares.values()) <= 0:
        raise UserError(f"mix.shares must be at least 0 each and positive for at least one source, found {config.mix.shares}")
    for key in ("only", "leave_out"):
        for source in getattr(config.mix, key):
            if source not in config.mix.shares:
                raise UserError(f"mix.{key} names '{source}', which mix.shares does not have{nearest(source, config.mix.shares)}")
    if config.mix.temperature < 0.1:
        raise UserError(
            f"mix.temperature must be at least 0.1, found {config.mix.temperature:g}; 1 keeps the shares, larger evens them out"
        )
    if not config.mix.drawn:
        raise UserError("mix.only and mix.leave_out leave no source with a positive share to draw from")
    for key, least in AT_LEAST.items():
        value = attrgetter(key)(config)
        if value is not None and value < least:
            raise UserError(f"{key} must be at least {least}, found {value}")
    if data.window % data.global_batch:
        raise UserError(f"data.window={data.window} must be a multiple of data.global_batch={data.global_batch}")
    ranks = trainer.devices * trainer.nodes
    if data.global_batch % (ranks * trainer.accumulate):
        raise UserError(
            f"data.global_batch={data.global_batch} must be divisible by trainer.devices x trainer.nodes x trainer.accumulate "
            f"= {ranks} x {trainer.accumulate}"
        )
    refuse(config)
    one_of("trainer.recompute", trainer.recompute, RECOMPUTE)
    one_of("trainer.nonfinite", trainer.nonfinite, ("stop", "skip"))
    one_of("trainer.strategy", trainer.strategy, ("ddp",))
    one_of("trainer.accelerator", trainer.accelerator, ("cpu", "gpu", "auto"))
    one_of("trainer.precision", trainer.precision, ("32-true", "64-true", "bf16-mixed"))
    one_of("optim.schedule", config.optim.schedule, ("cosine", "constant"))
    one_of("projector.kind", config.projector.kind, ("mlp", "linear"))
    one_of("language.dtype", config.language.dtype, ("float32", "bfloat16"))
    one_of("logger.wandb", config.logger.wandb, ("none", "offline", "online"))
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


def finite(config: Any, prefix: str = "") -> None:
    """YAML reads nan and inf as numbers, and no comparison finds a nan."""
    items: Any = vars(config) if is_dataclass(config) else config if isinstance(config, dict) else dict(enumerate(config))
    for key, value in items.items():
        if isinstance(value, dict | list) or is_dataclass(value):
            finite(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{key} must be a finite number, found {value}")


def refuse(config: Train) -> None:
    """What others offer and this project does not, with the reason."""
    if any(word in config.language.dtype.lower() for word in ("4bit", "int4", "nf4", "fp4")):
        raise UserError(
            f"language.dtype={config.language.dtype}: 4-bit bases are refused, because adapters trained on rounded weights do not fit the "
            "weights that are exported; use bfloat16, and python -m src.plan says with which trainer.recompute it fits your device"
        )
    if "fsdp" in config.trainer.strategy.lower():
        raise UserError(
            f"trainer.strategy={config.trainer.strategy}: FSDP is refused, because a frozen 7B fits one device and only what trains needs "
            "to be exchanged; set trainer.strategy=ddp"
        )


AT_LEAST = {
    "seed": 0,
    "data.window": 1,
    "data.global_batch": 1,
    "data.row_tokens": 16,
    "data.workers": 0,
    "data.validate": 0,
    "data.answers": 0,
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
    "trainer.check_every": 1,
    "trainer.keep": 1,
}


def missing_files(config: Train) -> list[str]:
    """What a run needs and the disk does not have, one clause each: shards of the mix, local weights."""
    missing = []
    root, remote = Path(config.data.root), "://" in config.data.root  # what stands at an address is asked for when it is opened
    absent = [source for source in config.mix.drawn if not remote and not (root / source / "manifest.json").exists()]
    if absent:
        built = sorted(path.parent.name for path in root.glob("*/manifest.json"))
        meant = nearest(absent[0], built) if len(absent) == 1 and built else f"; it holds {', '.join(built) or 'no source'}"
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


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r}{nearest(value, allowed)}")
