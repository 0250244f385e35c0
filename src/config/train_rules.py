"""Rules of the training configuration that concern several fields or the disk; rules of single fields are in `src/config/train.py`."""

from pathlib import Path

from src.config.fields import check_fields
from src.config.train import MixConfig, TrainConfig
from src.config.trainer_extra import check_extra
from src.runtime.errors import UserError, suggest


def check_train_config(config: TrainConfig) -> None:
    """Raises a `UserError` that names the key, what was found and what is allowed, unless a run with this configuration can start."""
    check_values(config)
    missing = missing_files(config)
    if missing:
        raise UserError("; ".join(missing))


def check_values(config: TrainConfig) -> None:
    """Checks the values without access to the disk; raises `UserError`."""
    reject_unsupported(config)
    check_fields(config)
    check_extra(config.trainer.extra)
    _check_mix(config.mix)
    data, trainer, optim = config.data, config.trainer, config.optim
    if data.packing_window % data.global_batch_size:
        raise UserError(f"data.packing_window={data.packing_window} must be a multiple of data.global_batch_size={data.global_batch_size}")
    ranks = trainer.devices * trainer.nodes
    if data.global_batch_size % (ranks * trainer.accumulate):
        raise UserError(
            f"data.global_batch_size={data.global_batch_size} must be divisible by trainer.devices x trainer.nodes x trainer.accumulate "
            f"= {ranks} x {trainer.accumulate}"
        )
    if (optim.steps is None) == (optim.epochs is None):
        raise UserError(f"give one of optim.steps={optim.steps} and optim.epochs={optim.epochs}, and set the other to null")
    if optim.epochs is not None and optim.epochs <= 0:
        raise UserError(f"optim.epochs must be above 0, found {optim.epochs:g}")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise UserError(f"optim.betas must be two numbers from 0 to below 1, found {optim.betas}")
    rates = vars(optim.lr)
    if all(rate == 0 for rate in rates.values()) or min(rates.values()) < 0:
        raise UserError(f"optim.lr needs at least one positive learning rate (0 freezes a part), found {rates}")
    if not Path(config.name).parts or Path(config.name).is_absolute() or ".." in Path(config.name).parts:
        raise UserError(f"name={config.name!r} must be the name of a folder inside outputs={config.outputs}")
    if not config.language.lora.targets:
        raise UserError("language.lora.targets must name a linear layer; to freeze the language model, set optim.lr.language=0")


def _check_mix(mix: MixConfig) -> None:
    if not mix.shares or any(share < 0 for share in mix.shares.values()) or sum(mix.shares.values()) <= 0:
        raise UserError(f"mix.shares must be at least 0 each and positive for at least one source, found {mix.shares}")
    for key in ("only", "leave_out", "exclude", "max_per_subset"):
        for source in getattr(mix, key) or ():
            if source not in mix.shares:
                raise UserError(f"mix.{key} names '{source}', which mix.shares does not have{suggest(source, mix.shares)}")
    for source, records in (mix.max_per_subset or {}).items():
        if records < 1:
            raise UserError(f"mix.max_per_subset.{source} must be at least 1, found {records}")
    if not mix.sampling_weights:
        raise UserError("mix.only and mix.leave_out leave no source with a positive share; change one of them")


def reject_unsupported(config: TrainConfig) -> None:
    """Raises `UserError` with the reason for features that similar projects have and this one does not."""
    if any(word in config.language.dtype.lower() for word in ("4bit", "int4", "nf4", "fp4")):
        raise UserError(
            f"language.dtype={config.language.dtype}: 4-bit weights are not supported, because adapters trained on rounded weights do not "
            "fit the exported ones; use bfloat16, and run python -m src.plan to find the trainer.activation_checkpointing for your device"
        )
    if config.trainer.activation_checkpointing == "selective" and not config.language.fast:
        raise UserError(
            "trainer.activation_checkpointing=selective needs language.fast=true; set it, or trainer.activation_checkpointing=full or none"
        )
    if "fsdp" in config.trainer.strategy.lower():
        raise UserError(
            f"trainer.strategy={config.trainer.strategy}: FSDP is not supported, because a frozen 7B model fits one device and only the "
            "gradients of the trained parameters are exchanged; set trainer.strategy=ddp"
        )


def missing_files(config: TrainConfig) -> list[str]:
    """One message for each missing input of a run: shards of the mix, local weights, the run of `init`. Does not check remote roots."""
    missing = []
    root, is_remote = Path(config.data.root), "://" in config.data.root  # remote shards are checked when they are opened
    absent = [source for source in config.mix.sampling_weights if not is_remote and not (root / source / "manifest.json").exists()]
    if absent:
        built = sorted(path.parent.name for path in root.glob("*/manifest.json"))
        hint = suggest(absent[0], built) if len(absent) == 1 and built else f"; it holds {', '.join(built) or 'no source'}"
        missing.append(
            f"mix.shares names {', '.join(absent)}, but data.root={root} has no such shards{hint}; build them with "
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
