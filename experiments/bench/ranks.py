"""`python -m experiments.bench.ranks`: how evenly a step loads its ranks, by whole rows as dealt before and by samples as split now.

Samples have one image of 196 tokens and a log-normal text (80 tokens on average), so that 128 of them fill about 17 rows of 2,048.
Used is the mean number of tokens of a rank over that of the fullest rank, for which all others wait.

Legend: S steps, R ranks.
"""

from collections.abc import Iterator

import numpy as np

from src.data.packing import pack, split_by_tokens, split_evenly

BATCHES, WORLDS = (128, 256, 512), (1, 8, 16, 32)
WINDOWS, WINDOW, ROW_TOKENS = 4, 2048, 2048
HEAD = ("data.global_batch_size", "ranks", "used, whole rows", "used, samples split", "empty, whole rows", "empty, samples split")


def steps(batch: int) -> Iterator[list[list[int]]]:
    """The rows of each step, as the lengths of their samples."""
    rng = np.random.default_rng(0)
    for _ in range(WINDOWS):
        lengths = 197 + rng.lognormal(4, 0.9, WINDOW).clip(8, 1500).astype(int)
        packed = pack(lengths.tolist(), ROW_TOKENS)
        rows = [lengths[packed[n]].tolist() for n in rng.permutation(len(packed))]
        count = WINDOW // batch
        yield from ([rows[n] for n in split_evenly(len(rows), count, step)] for step in range(count))


def by_rows(rows: list[list[int]], world: int) -> list[int]:
    return [sum(sum(rows[n]) for n in split_evenly(len(rows), world, rank)) for rank in range(world)]


def by_samples(rows: list[list[int]], world: int) -> list[int]:
    lengths = [length for row in rows for length in row]
    return [sum(lengths[item] for item in share) for share in split_by_tokens(lengths, world)]


def table() -> str:
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    for batch in BATCHES:
        for world in WORLDS:
            loads = [np.array([loads_of(rows, world) for rows in steps(batch)]) for loads_of in (by_rows, by_samples)]
            used = [f"{tokens_SR.mean(1).sum() / tokens_SR.max(1).sum():.0%}" for tokens_SR in loads]
            empty = [f"{(tokens_SR == 0).mean():.0%}" for tokens_SR in loads]
            lines.append(f"| {' | '.join([str(batch), str(world), *used, *empty])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
