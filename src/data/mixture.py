"""(seed, position) -> (source, row): the order of the training stream, as a pure function.

Positions are cut into blocks of `BLOCK`. A block is a shuffled deck with a fixed number of cards per source, so the shares
are exact in every block. Card n of a source is its draw number; draw -> (epoch, k) -> that epoch's permutation of the
source. Nothing is stored: seeking costs one deck, and neither workers nor world size can change the order. Sources are numbered by
name, so the order in which the shares are written does not matter.
"""

import numpy as np

BLOCK = 10_000
VERSION = 2  # of the order of the stream. Version 1 numbered the sources as the shares were written


def counts_per_block(shares: dict[str, float]) -> dict[str, int]:
    """Cards per source in a block, by largest remainder; every source with a positive share gets at least one."""
    shares = dict(sorted(shares.items()))
    total = sum(shares.values())
    exact = {source: BLOCK * share / total for source, share in shares.items() if share > 0}
    dealt = {source: max(1, int(x)) for source, x in exact.items()}
    rest = BLOCK - sum(dealt.values())
    by_remainder = sorted(exact, key=lambda source: (int(exact[source]) - exact[source], source))
    for source in by_remainder[: max(rest, 0)]:
        dealt[source] += 1
    if rest < 0:  # tiny shares were rounded up to one card: the largest source pays for them
        dealt[max(dealt, key=lambda source: dealt[source])] += rest
    return dealt


class Mixture:
    """The stream over `rows` (per source: the row numbers that may be drawn)."""

    def __init__(self, shares: dict[str, float], rows: dict[str, np.ndarray], *, seed: int):
        self.sources = sorted(source for source in shares if shares[source] > 0)
        dealt = counts_per_block(shares)
        self.cards = np.array([dealt[source] for source in self.sources])
        self.rows = [rows[source] for source in self.sources]
        self.seed = seed
        self._deck = np.repeat(np.arange(len(self.sources), dtype=np.int16), self.cards)
        self._order: dict[int, tuple[int, np.ndarray]] = {}  # source -> (epoch, its permutation), the latest one only

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions start..stop -> (source numbers int16, rows int64)."""
        parts = [self._block(block) for block in range(start // BLOCK, (stop - 1) // BLOCK + 1)]
        first = start // BLOCK * BLOCK
        source = np.concatenate([deck for deck, _ in parts])[start - first : stop - first]
        draw = np.concatenate([draws for _, draws in parts])[start - first : stop - first]
        row = np.empty(len(source), np.int64)
        for number in np.unique(source):
            at = source == number
            row[at] = self._rows_of(int(number), draw[at])
        return source, row

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        deck = self._deck[np.random.Generator(np.random.Philox(key=[self.seed, block])).permutation(BLOCK)]
        draws = np.empty(BLOCK, np.int64)
        for number, count in enumerate(self.cards):
            draws[deck == number] = block * count + np.arange(count)
        return deck, draws

    def _rows_of(self, number: int, draws: np.ndarray) -> np.ndarray:
        rows = self.rows[number]
        epochs, ranks = np.divmod(draws, len(rows))
        out = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            out[at] = rows[self._permutation(number, int(epoch))[ranks[at]]]
        return out

    def _permutation(self, number: int, epoch: int) -> np.ndarray:
        held = self._order.get(number)
        if held is None or held[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, (number + 1) * 2**32 + epoch]))
            order = rng.permutation(len(self.rows[number])).astype(np.int32)
            self._order[number] = held = (epoch, order)
        return held[1]
