"""The `lightning.Trainer` of a configuration."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import profilers
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from src.config.train import TrainConfig

PROFILERS = {"simple": profilers.SimpleProfiler, "advanced": profilers.AdvancedProfiler, "pytorch": profilers.PyTorchProfiler}


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
