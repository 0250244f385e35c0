"""`python -m experiments.bench.ranks`: how evenly the samples of a step load the ranks, for two ways of assigning them.

`whole rows` assigns whole packed sequences to ranks; `samples split` divides the samples by their numbers of tokens, as training does.
Each sample has one image of 196 tokens and a text of log-normal length (mean 80 tokens), so 128 samples fill about 17 sequences of 2,048.
`used` is the mean number of tokens per rank over that of the fullest rank, for which all others wait.

Legend: S steps, R ranks.
"""

from collections.abc import Iterator

import numpy as np

from src.data.packing import pack, split_by_tokens, split_evenly

BATCH_SIZES, WORLD_SIZES = (128, 256, 512), (1, 8, 16, 32)
NUM_WINDOWS, WINDOW, MAX_SEQ_LEN = 4, 2048, 2048
HEADER = ("data.global_batch_size", "ranks", "used, whole rows", "used, samples split", "empty, whole rows", "empty, samples split")


def packed_steps(batch_size: int) -> Iterator[list[list[int]]]:
    """The packed sequences of each step, as lists of sample lengths."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_WINDOWS):
        lengths = 197 + rng.lognormal(4, 0.9, WINDOW).clip(8, 1500).astype(int)
        packed = pack(lengths.tolist(), MAX_SEQ_LEN)
        sequences = [lengths[packed[n]].tolist() for n in rng.permutation(len(packed))]
        steps = WINDOW // batch_size
        yield from ([sequences[n] for n in split_evenly(len(sequences), steps, step)] for step in range(steps))


def tokens_by_sequences(sequences: list[list[int]], world_size: int) -> list[int]:
    return [sum(sum(sequences[n]) for n in split_evenly(len(sequences), world_size, rank)) for rank in range(world_size)]


def tokens_by_samples(sequences: list[list[int]], world_size: int) -> list[int]:
    lengths = [length for sequence in sequences for length in sequence]
    return [sum(lengths[item] for item in share) for share in split_by_tokens(lengths, world_size)]


def table() -> str:
    lines = [f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}"]
    for batch_size in BATCH_SIZES:
        for world_size in WORLD_SIZES:
            steps = list(packed_steps(batch_size))
            loads = [np.array([tokens(step, world_size) for step in steps]) for tokens in (tokens_by_sequences, tokens_by_samples)]
            used = [f"{tokens_SR.mean(1).sum() / tokens_SR.max(1).sum():.0%}" for tokens_SR in loads]
            empty = [f"{(tokens_SR == 0).mean():.0%}" for tokens_SR in loads]
            lines.append(f"| {' | '.join([str(batch_size), str(world_size), *used, *empty])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
