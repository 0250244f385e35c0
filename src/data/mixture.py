"""(seed, position) -> (source, row): the order of the training stream, as a pure function.

The stream is divided into blocks of `BLOCK` positions. Each block is a shuffled schedule with a fixed number of positions per source,
so the shares are exact in every block. The n-th time (from 0) a source is drawn, epoch, k = divmod(n, records), and the sample is entry
k of that epoch's permutation. Any position can be computed from the seed alone, at the cost of one block, so neither workers nor world
size can change the order. Sources are numbered by name, so the order of `mix.shares` does not matter.
"""

import numpy as np

BLOCK = 10_000
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
    """The stream over `rows`, the index rows per source that are used for training."""

    def __init__(self, shares: dict[str, float], rows: dict[str, np.ndarray], *, seed: int):
        self.sources = sorted(source for source in shares if shares[source] > 0)
        counts = counts_per_block(shares)
        self.counts = np.array([counts[source] for source in self.sources])
        self.rows = [rows[source] for source in self.sources]
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
            permutation = rng.permutation(len(self.rows[source])).astype(np.int32)
            self._permutations[source] = cached = (epoch, permutation)
        return cached[1]
