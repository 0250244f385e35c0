"""src/data/working_set.py: the plan of cache and bandwidth, against a simulated cache that drops the least recently used shard."""

from collections import Counter, OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from src.config.train import DataConfig
from src.data.mixture import Mixture
from src.data.working_set import SourceLoad, cache_bytes, cache_table, cache_warning, fetched_bytes_per_sample, first_window_bytes

RECORDS, BYTES = 40, 1000  # per shard
SHARDS = {"large": 1000, "middle": 150, "small": 30, "single": 1}
SIZES = {source: np.full(count, RECORDS) for source, count in SHARDS.items()}
ROWS = {source: np.arange(RECORDS * count) for source, count in SHARDS.items()}
TOTAL = sum(SHARDS.values())
LOADS = [SourceLoad(count, count * BYTES, count * RECORDS, count / TOTAL) for count in SHARDS.values()]


@pytest.fixture
def data(configure) -> DataConfig:
    return replace(configure().data, packing_window=128, shuffle="blocks")


def fetched(shuffle: str, *, size: float, start: int = 0, windows: int) -> Counter:
    """Fetched shards per source of a run through these windows with a cache of `size` shards."""
    mixture = Mixture(SHARDS, ROWS, seed=0, shard_sizes=SIZES if shuffle == "blocks" else None)
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    counts: Counter = Counter()
    for window in range(start, start + windows):
        sources, rows = mixture.take(window * 128, (window + 1) * 128)
        for shard in dict.fromkeys(zip(sources.tolist(), (rows // RECORDS).tolist(), strict=True)):
            if shard not in cache:
                counts[mixture.sources[shard[0]]] += 1
            cache[shard] = None
            cache.move_to_end(shard)
            while len(cache) > size:
                cache.popitem(last=False)
    return counts


@pytest.mark.slow
def test_blocks_fetch_each_shard_once_per_epoch_with_a_cache_of_5_percent(data):
    """In the second epoch too; the predicted cache is no larger."""
    windows = TOTAL * RECORDS // 128
    for start in (0, windows):
        counts = fetched("blocks", size=0.05 * TOTAL, start=start, windows=windows)
        assert 0.98 * TOTAL <= counts.total() <= 1.05 * TOTAL
    assert cache_bytes(LOADS, data) <= 0.05 * TOTAL * BYTES
    assert fetched("blocks", size=cache_bytes(LOADS, data) / BYTES, windows=windows).total() <= 1.05 * TOTAL


def test_global_order_fetches_what_is_planned_for_a_small_cache(data):
    data = replace(data, shuffle="global")
    size = 0.05 * TOTAL
    first = fetched("global", size=TOTAL, windows=1).total()
    assert first == pytest.approx(first_window_bytes(LOADS, data) / BYTES, rel=0.1)
    rate = fetched("global", size=size, windows=40).total() * BYTES / (40 * 128)
    assert rate == pytest.approx(fetched_bytes_per_sample(LOADS, data, cache=size * BYTES), rel=0.1)
    assert fetched_bytes_per_sample(LOADS, data, cache=TOTAL * BYTES) == 0


def test_blocks_fetch_the_bytes_of_a_sample_per_sample(data):
    """Not those of the source that stays in the cache."""
    rate = fetched_bytes_per_sample(LOADS, data, cache=cache_bytes(LOADS, data))
    assert rate == pytest.approx(BYTES / RECORDS * (TOTAL - 1) / TOTAL)


def test_table_has_the_bandwidth_of_each_number_of_nodes(data):
    console = Console(width=140, record=True)
    console.print(cache_table(LOADS, data, samples_per_second=4e6))
    rows = [line.split() for line in console.export_text().splitlines()[1:]]
    assert rows[0][1:] == ["0.00", "0.00", "0.0", "0.0", "0.0"]
    assert rows[2][-3:] == ["99.9", "799.3", "6,394.6"]  # 25 bytes per sample, for all but one of 1,181 samples


def test_cache_below_the_working_set_is_reported(data):
    needed = cache_bytes(LOADS, data) / 1e9
    assert cache_warning(LOADS, replace(data, cache_gb=needed)) is None
    assert "data.shuffle=blocks, so they are fetched again" in str(cache_warning(LOADS, replace(data, cache_gb=needed / 2)))
    assert cache_warning(LOADS, replace(data, cache_gb=needed, shuffle="global"))
