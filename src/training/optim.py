"""Optimizer, learning rate schedule and length of a run."""

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch.optim.lr_scheduler import LambdaLR

from src.config.train import OptimConfig, TrainConfig
from src.data.remote import CacheConfig
from src.data.train_val_split import open_sources, split_rows
from src.model.vlm import VLM
from src.runtime.run_folder import is_first_rank

Config = TypeVar("Config", bound=TrainConfig)  # or PlanConfig, which extends it


def optimizer(model: VLM, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, with one learning rate per part (0 = frozen).

    Matrices have weight decay; vectors (norms, biases, class tokens) have none.
    """
    groups = []
    for part, module in model.parts().items():
        trainable = [p for p in module.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trainable if p.ndim >= 2], [p for p in trainable if p.ndim < 2]
        for params, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": getattr(config.lr, part), "weight_decay": decay, "part": part})
    on_gpu = any(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]), fused=on_gpu, foreach=not on_gpu)


def lr_factor(step: int, config: OptimConfig) -> float:
    """Fraction of the peak learning rate at optimizer step `step` (0-based): linear warm-up, then cosine to a tenth, or constant."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup) / max(1, config.length - config.warmup))
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


def lr_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: lr_factor(step, config))


def epochs_to_steps(config: Config, *, records: int | None = None) -> Config:
    """Returns `config` with `optim.epochs` converted to `optim.steps`.

    steps = epochs x training records of all sources / global_batch_size. Because sources are drawn by share, a single source may be seen
    more or less often than `epochs` times. `records` replaces the count in the shards.

    A warm-up that is not shorter than the run is shortened to a tenth of it, with a note.
    """
    epochs = config.optim.epochs
    if epochs is None:
        return _shorten_warmup(config)
    if records is None:
        shards = open_sources(config.data.root, config.mix, cache=CacheConfig(config.data.cache, config.data.cache_gb))
        rows, _ = split_rows(shards, config.mix, val_samples=config.data.val_samples)
        records = sum(map(len, rows.values()))
    steps = max(1, round(epochs * records / config.data.global_batch_size))
    return _shorten_warmup(replace(config, optim=replace(config.optim, steps=steps)))


def _shorten_warmup(config: Config) -> Config:
    warmup, steps = config.optim.warmup, config.optim.length
    if warmup < steps:
        return config
    if is_first_rank():
        print(f"optim.warmup={warmup} is not shorter than the {steps} steps of the run; the warm-up is shortened to {steps // 10} steps")
    return replace(config, optim=replace(config.optim, warmup=steps // 10))
