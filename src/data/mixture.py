"""(seed, position) -> (source, row): the order of the training stream, as a pure function.

The stream is divided into blocks of `BLOCK` positions. Each block is a shuffled schedule with a fixed number of positions per source,
so the shares are exact in every block. The n-th time (from 0) a source is drawn, epoch, k = divmod(n, records), and the sample is entry
k of that epoch's permutation. Any position can be computed from the seed alone, at the cost of one block, so neither workers nor world
size can change the order. Sources are numbered by name, so the order of `mix.shares` does not matter.

With `data.shuffle=blocks` the permutation is local, so that an epoch needs each shard for a short time only. The shards of a source follow
each other in random order, and the records of each are spread uniformly over a range around its place. The range is `SPREAD` of the epoch
and at least `MIN_SHARDS` times the shard. This is the method of py1e in mosaicml-streaming (written from its documentation:
https://docs.mosaicml.com/projects/streaming/en/stable/dataset_configuration/shuffling.html).
"""

import numpy as np

from src.data.shards import Shards

BLOCK = 10_000
SPREAD, MIN_SHARDS = 1 / 40, 2  # with these, 5% of the size of a mix suffices as cache (tests/test_working_set.py)
VERSION = 2  # of the order of the stream; version 1 numbered the sources in the order of mix.shares


def counts_per_block(shares: dict[str, float]) -> dict[str, int]:
    """Positions per source in a block, by the largest remainder method; every source with a positive share gets at least one."""
    shares = dict(sorted(shares.items()))
    total = sum(shares.values())
    exact = {source: BLOCK * share / total for source, share in shares.items() if share > 0}
    counts = {source: max(1, int(count)) for source, count in exact.items()}
    rest = BLOCK - sum(counts.values())
    by_remainder = sorted(exact, key=lambda source: (int(exact[source]) - exact[source], source))
    for source in by_remainder[: max(rest, 0)]:
        counts[source] += 1
    if rest < 0:  # tiny shares were rounded up to one position, which the largest source gives up
        counts[max(counts, key=lambda source: counts[source])] += rest
    return counts


class Mixture:
    """The stream over `rows`, the index rows per source that are used for training, ascending.

    `shard_sizes` has the number of these rows in each shard, in the order of the shards, if the permutations shall be local.
    """

    def __init__(
        self, shares: dict[str, float], rows: dict[str, np.ndarray], *, seed: int, shard_sizes: dict[str, np.ndarray] | None = None
    ):
        self.sources = sorted(source for source in shares if shares[source] > 0)
        counts = counts_per_block(shares)
        self.counts = np.array([counts[source] for source in self.sources])
        self.rows = [rows[source] for source in self.sources]
        self.shard_sizes = [shard_sizes[source] for source in self.sources] if shard_sizes else None
        self.seed = seed
        self._schedule = np.repeat(np.arange(len(self.sources), dtype=np.int16), self.counts)
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}  # source -> (epoch, its permutation); only the latest epoch

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(source numbers int16, index rows int64) of the positions from `start` to `stop`."""
        blocks = [self._block(block) for block in range(start // BLOCK, (stop - 1) // BLOCK + 1)]
        first = start // BLOCK * BLOCK
        sources = np.concatenate([sources for sources, _ in blocks])[start - first : stop - first]
        draws = np.concatenate([draws for _, draws in blocks])[start - first : stop - first]
        rows = np.empty(len(sources), np.int64)
        for source in np.unique(sources):
            at = sources == source
            rows[at] = self._rows_of(int(source), draws[at])
        return sources, rows

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(source number, draw number) of each position of a block."""
        sources = self._schedule[np.random.Generator(np.random.Philox(key=[self.seed, block])).permutation(BLOCK)]
        draws = np.empty(BLOCK, np.int64)
        for source, count in enumerate(self.counts):
            draws[sources == source] = block * count + np.arange(count)
        return sources, draws

    def _rows_of(self, source: int, draws: np.ndarray) -> np.ndarray:
        rows = self.rows[source]
        epochs, offsets = np.divmod(draws, len(rows))
        result = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            result[at] = rows[self._permutation(source, int(epoch))[offsets[at]]]
        return result

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        cached = self._permutations.get(source)
        if cached is None or cached[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, (source + 1) * 2**32 + epoch]))
            permutation = local_permutation(self.shard_sizes[source], rng) if self.shard_sizes else rng.permutation(len(self.rows[source]))
            self._permutations[source] = cached = (epoch, permutation.astype(np.int32))
        return cached[1]


def local_permutation(sizes_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation of the records of S shards of these sizes in which the records of a shard stay near each other."""
    if len(sizes_S) <= MIN_SHARDS:
        return rng.permutation(sizes_S.sum())
    order_S, total = rng.permutation(len(sizes_S)), sizes_S.sum()
    middle_S = np.empty(len(sizes_S))
    middle_S[order_S] = sizes_S[order_S].cumsum() - sizes_S[order_S] / 2
    width_S = np.maximum(SPREAD * total, MIN_SHARDS * sizes_S)
    first_S, last_S = (middle_S - width_S / 2).clip(min=0), (middle_S + width_S / 2).clip(max=total)
    place_N = np.repeat(first_S, sizes_S) + np.repeat(last_S - first_S, sizes_S) * rng.random(total)
    return np.argsort(place_N, kind="stable")


def mixture_of(shards: dict[str, Shards], shares: dict[str, float], rows: dict[str, np.ndarray], *, shuffle: str, seed: int) -> Mixture:
    """The stream over `rows` of `shards` with `data.shuffle`."""
    if shuffle == "global":
        return Mixture(shares, rows, seed=seed)
    sizes = {source: np.unique(shards[source].column("shard")[some], return_counts=True)[1] for source, some in rows.items()}
    return Mixture(shares, rows, seed=seed, shard_sizes=sizes)
