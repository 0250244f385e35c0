"""The length of a run in epochs instead of steps."""

from dataclasses import replace
from typing import TypeVar

from src.config.train import TrainConfig
from src.data.remote import CacheConfig
from src.data.train_val_split import open_sources, split_rows
from src.runtime.errors import UserError

Config = TypeVar("Config", bound=TrainConfig)  # or a plan, which has all of its keys


def epochs_to_steps(config: Config) -> Config:
    """The same configuration with `optim.epochs` as steps: that many times the records that may be drawn, in global batches.

    An epoch is one of the whole mix; with shares that are not the records' own, a source is shown more or less often than that.
    """
    epochs = config.optim.epochs
    if epochs is None:
        return config
    shards = open_sources(config.data.root, config.mix, cache=CacheConfig(config.data.cache, config.data.cache_gb))
    rows, _ = split_rows(shards, config.mix, val_samples=config.data.val_samples)
    steps = max(1, round(epochs * sum(map(len, rows.values())) / config.data.global_batch_size))
    if config.optim.warmup >= steps:
        raise UserError(f"optim.warmup={config.optim.warmup} must be smaller than the {steps} steps that optim.epochs={epochs:g} come to")
    return replace(config, optim=replace(config.optim, steps=steps))
