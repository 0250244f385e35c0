"""The `lightning.Trainer` of a configuration."""

import inspect
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import profilers
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from src.config.train import TrainConfig
from src.runtime.errors import UserError, suggest

# Arguments of `lightning.Trainer` that a configuration sets, and what to use instead of `trainer.extra` for each.
RESERVED = {
    "accelerator": "trainer.accelerator",
    "devices": "trainer.devices",
    "num_nodes": "trainer.nodes",
    "strategy": "trainer.strategy",
    "precision": "trainer.precision",
    "max_steps": "optim.steps",
    "max_epochs": "optim.epochs",
    "limit_train_batches": "optim.steps",
    "overfit_batches": "mix.only",
    "accumulate_grad_batches": "trainer.accumulate",
    "gradient_clip_val": "optim.clip",
    "gradient_clip_algorithm": "optim.clip",
    "callbacks": "callbacks",
    "logger": "logger",
    "default_root_dir": "outputs",
    "enable_checkpointing": "trainer.keep_last",
    "val_check_interval": "trainer.val_every",
    "check_val_every_n_epoch": "trainer.val_every",
    "num_sanity_val_steps": "trainer.val_every",
    "log_every_n_steps": "trainer.log_every",
    "use_distributed_sampler": "data.global_batch_size",
    "reload_dataloaders_every_n_epochs": "data.packing_window",
}
PROFILERS = {"simple": profilers.SimpleProfiler, "advanced": profilers.AdvancedProfiler, "pytorch": profilers.PyTorchProfiler}


def check_extra(extra: dict[str, Any]) -> None:
    """Raises `UserError` for a key of `trainer.extra` that `lightning.Trainer` does not have or that another config key sets."""
    for key in extra:
        if key in RESERVED:
            raise UserError(f"trainer.extra.{key}: this argument is set by the configuration; use the config key {RESERVED[key]} instead")
        allowed = inspect.signature(lightning.Trainer).parameters.keys() - RESERVED.keys()
        if key not in allowed:
            raise UserError(f"trainer.extra.{key}: lightning.Trainer has no such argument{suggest(key, allowed)}")


def build_trainer(config: TrainConfig, *, callbacks: list[lightning.Callback], logger: Logger | None = None) -> lightning.Trainer:
    """A trainer with the arguments of `config.trainer`; those of `trainer.extra` are passed on unchanged.

    A profiler that is given by name writes into the run folder, because Lightning prints its table to a log level that is off.
    """
    settings, extra = config.trainer, dict(config.trainer.extra)
    if extra.get("profiler") in PROFILERS:
        extra["profiler"] = PROFILERS[extra["profiler"]](dirpath=Path(config.outputs, config.name), filename="profile")
    arguments: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "num_nodes": settings.nodes,
        "strategy": settings.strategy if settings.devices * settings.nodes > 1 else "auto",
        "precision": settings.precision,
        "max_steps": config.optim.length,
        "accumulate_grad_batches": settings.accumulate,
        "gradient_clip_val": config.optim.clip or None,
        "callbacks": callbacks,
        "logger": logger or False,
        "default_root_dir": config.outputs,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        # Counted in micro-batches over the whole run, since the stream has no epochs.
        "val_check_interval": settings.val_every * settings.accumulate,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": settings.log_every,
        "use_distributed_sampler": False,
    }
    return lightning.Trainer(**arguments, **{"enable_progress_bar": False, "enable_model_summary": False, **extra})


def validates_after(trainer: lightning.Trainer, step: int) -> bool:
    """Whether a validation follows optimizer step `step`: at every multiple of `trainer.val_every` and after the last step."""
    due = step * trainer.accumulate_grad_batches % trainer.val_check_batch == 0
    return trainer.enable_validation and (due or step == trainer.max_steps)
