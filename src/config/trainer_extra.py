"""The keys of `trainer.extra`: arguments of `lightning.Trainer` that no other key sets. Listed, because Lightning is slow to import."""

from typing import Any

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
ALLOWED = (
    *("barebones", "benchmark", "detect_anomaly", "deterministic", "enable_autolog_hparams", "enable_model_summary", "enable_progress_bar"),
    *("fast_dev_run", "inference_mode", "limit_predict_batches", "limit_test_batches", "limit_val_batches", "max_time", "min_epochs"),
    *("min_steps", "model_registry", "plugins", "profiler", "sync_batchnorm"),
)


def check_extra(extra: dict[str, Any]) -> None:
    """Raises `UserError` for a key of `trainer.extra` that `lightning.Trainer` does not have or that another config key sets."""
    for key in extra:
        if key in RESERVED:
            raise UserError(f"trainer.extra.{key}: this argument is set by the configuration; use the config key {RESERVED[key]} instead")
        if key not in ALLOWED:
            raise UserError(f"trainer.extra.{key}: lightning.Trainer has no such argument{suggest(key, ALLOWED)}")
