"""How much of remote shards a training run holds in the cache of a node, and how fast it fetches them.

Every rank packs the whole window from the texts of its samples, so every node fetches every shard.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from rich.table import Column, Table

from src.config.train import DataConfig
from src.data.mixture import MIN_SHARDS, SPREAD
from src.data.shards import Shards

WINDOWS = 3  # the window that is read, the one that is fetched ahead, and the lead of the fastest data worker
NODES = (1, 8, 64)


class SourceLoad(NamedTuple):
    """The shards of one source."""

    shards: int
    size: float  # bytes of all
    records: int
    share: float  # of the samples of the stream

    def in_use(self, data: DataConfig) -> float:
        """Shards that the stream reads from within a few windows."""
        if data.shuffle == "global":
            return self.shards
        moved = WINDOWS * data.packing_window * self.share / self.records  # of the source, by which the stream moves on meanwhile
        return min(self.shards, max(SPREAD * self.shards, MIN_SHARDS) + 1 + moved * self.shards)

    def per_window(self, data: DataConfig) -> float:
        """Expected number of shards that a window reads from."""
        return (in_use := self.in_use(data)) * (1 - (1 - 1 / max(in_use, 1)) ** (data.packing_window * self.share))


def source_load(shards: Shards, rows: np.ndarray, *, share: float) -> SourceLoad:
    """The shards that hold `rows`."""
    numbers = np.unique(shards.column("shard")[rows])
    return SourceLoad(len(numbers), sum(shards.manifest["shards"][number]["bytes"] for number in numbers), len(rows), share)


def cache_bytes(loads: list[SourceLoad], data: DataConfig) -> float:
    """Size of the shards that the stream reads from within a few windows."""
    return sum(load.size * load.in_use(data) / load.shards for load in loads if load.shards)


def first_window_bytes(loads: list[SourceLoad], data: DataConfig) -> float:
    """Size of the shards that are fetched before the first step."""
    return sum(load.size * load.per_window(data) / load.shards for load in loads if load.shards)


def fetched_bytes_per_sample(loads: list[SourceLoad], data: DataConfig, *, cache: float) -> float:
    """Bytes that a node fetches per sample of the stream once its cache of `cache` bytes is full."""
    total = sum(load.size for load in loads)
    if data.shuffle == "global":
        return first_window_bytes(loads, data) / data.packing_window * max(0.0, 1 - cache / total)
    return sum(load.size * load.share / load.records for load in loads if load.in_use(data) < load.shards)


def cache_warning(loads: list[SourceLoad], data: DataConfig) -> str | None:
    """A warning if `data.cache_gb` is so small that shards are fetched again and again."""
    required = cache_bytes(loads, data)
    if required <= data.cache_gb * 1e9:
        return None
    return (
        f"warning: data.cache_gb={data.cache_gb:g} is less than the size of the shards that the stream reads at a time with "
        f"data.shuffle={data.shuffle}, so they are fetched again and again; data.cache_gb={math.ceil(required / 1e8) / 10:g} holds them all"
    )


def cache_table(loads: list[SourceLoad], data: DataConfig, *, samples_per_second: float) -> Table:
    """Cache and bandwidth per node for both values of `data.shuffle`. n nodes train on n times `samples_per_second`."""
    rates = [Column(f"{nodes} nodes" if nodes > 1 else "MB/s per node: 1 node", justify="right") for nodes in NODES]
    table = Table("remote shards", Column("cache GB", justify="right"), Column("first window GB", justify="right"), *rates, box=None)
    whole, blocks = (replace(data, shuffle=shuffle) for shuffle in ("global", "blocks"))
    small = cache_bytes(loads, blocks)
    for name, setting, cache in (
        ("global", whole, cache_bytes(loads, whole)),
        ("global, small cache", whole, small),
        ("blocks", blocks, small),
    ):
        rate = fetched_bytes_per_sample(loads, setting, cache=cache) * samples_per_second / 1e6
        cells = [f"{size / 1e9:.2f}" for size in (cache, first_window_bytes(loads, setting))]
        table.add_row(name, *cells, *(f"{rate * nodes:,.1f}" for nodes in NODES))
    return table
