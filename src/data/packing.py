"""Sequence packing: samples -> sequences of at most `max_seq_len` tokens -> the micro-batches of a step -> the tensors of a batch.

Three records with 5, 3 and 4 tokens, `max_seq_len` 8. The ids are 1 for the begin and 2 for the end of a sequence, 9 for an image
token (one per image here), 20 to 29 for prompts and 30 to 39 for answers. Only answers and their end are supervised.

>>> records = [
...     ([1, 9, 20, 30, 2], [IGNORE, IGNORE, IGNORE, 30, 2], 1),
...     ([1, 31, 2], [IGNORE, 31, 2], 0),
...     ([1, 21, 32, 2], [IGNORE, IGNORE, 32, 2], 0),
... ]
>>> window = [EncodedSample(np.array(ids), np.array(labels), num_images) for ids, labels, num_images in records]
>>> lengths = [len(sample.ids) for sample in window]

Packing takes the longest sample first and puts it into the sequence with the least space that suffices. A window of 3 samples with a
global batch size of 3 is one step, so the step gets both sequences; two micro-batches get one each.

>>> packed = pack(lengths, 8)
>>> packed
[[0, 1], [2]]
>>> [list(split_evenly(len(packed), 2, n)) for n in range(2)]
[[0], [1]]

Two ranks split the samples of the step instead, so that each gets about the same number of tokens (5 and 7).

>>> split_by_tokens(lengths, 2)
[[0], [1, 2]]

On one rank with one micro-batch, both sequences become one batch. The second is padded with 2; its padding is one more sample.

>>> image = np.zeros((3, 4, 4), np.uint8)
>>> sequences = [[window[item] for item in sequence] for sequence in packed]
>>> batch = collate(sequences, sources=[[0, 0], [0]], images=[image], size=4, pad=2, image_id=9, keys=["a:0", "a:1", "a:2"])
>>> batch.input_ids_BT.tolist()
[[1, 9, 20, 30, 2, 1, 31, 2], [1, 21, 32, 2, 2, 2, 2, 2]]
>>> batch.position_ids_BT.tolist()
[[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
>>> batch.cu_seqlens  # attention stays between two neighbours of this list
[0, 5, 8, 12, 16]
>>> batch.image_token_index_K.tolist()
[1]
>>> batch.loss_index_S.tolist()  # positions that predict 30, 2, 31, 2, 32, 2
[2, 3, 5, 6, 9, 10]

Shape suffixes: B sequences, T tokens, N images, C channels, H height, W width, K image tokens, S supervised tokens.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.config.train import DataConfig
from src.data.prompt import IGNORE, EncodedSample

MIN_UTILIZATION = 0.9  # share of their time that several ranks should compute; below it, a warning is printed


class IndexedSample(NamedTuple):
    """A sample with its origin."""

    sample: EncodedSample
    source: int  # position in `Mixture.sources`
    row: int  # index row of the source


def pack(lengths: list[int], max_seq_len: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: item numbers per sequence, each item once, no sequence above `max_seq_len` tokens.

    Sequences are grouped by their free space. A bit mask over the free spaces finds the tightest fit in constant time.
    """
    assert max(lengths, default=0) <= max_seq_len
    by_space: list[list[int]] = [[] for _ in range(max_seq_len + 1)]
    mask = 0
    sequences: list[list[int]] = []
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[item]
        fits = mask >> length
        if fits:
            space = length + (fits & -fits).bit_length() - 1
            sequence = by_space[space].pop()
            if not by_space[space]:
                mask &= ~(1 << space)
        else:
            space, sequence = max_seq_len, len(sequences)
            sequences.append([])
        sequences[sequence].append(item)
        by_space[space - length].append(sequence)
        mask |= 1 << (space - length)
    return sequences


def split_evenly(count: int, num_parts: int, part: int) -> range:
    """Part `part` of `count` items in order; the sizes of the parts differ by at most one."""
    return range(count * part // num_parts, count * (part + 1) // num_parts)


def split_by_tokens(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Item numbers per part, ascending. Each item, longest first, goes to the part with the fewest tokens.

    Token counts differ by at most the longest item, and no part is empty while another has two items.
    """
    items: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0, part) for part in range(num_parts)]
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        tokens, part = heap[0]
        items[part].append(item)
        heapq.heapreplace(heap, (tokens + lengths[item], part))
    return [sorted(part) for part in items]


def micro_batch_sequences(
    sequences: list[list[IndexedSample]], *, rank: int, world: int, micro_batch: int, accumulate: int
) -> list[list[IndexedSample]]:
    """The part of the sequences of a step for one micro-batch of one rank.

    A single rank divides whole sequences among its micro-batches. A step has only few (for 128 samples, 17 sequences of 2,048 tokens), so
    several ranks would get unequal numbers of them and wait for each other. They divide the samples instead, so that each gets about the
    same number of tokens: first over the ranks, then over the micro-batches. The samples of one form a sequence without padding.
    """
    if world == 1:
        return [sequences[n] for n in split_evenly(len(sequences), accumulate, micro_batch)]
    items = [item for sequence in sequences for item in sequence]
    for num_parts, part in ((world, rank), (accumulate, micro_batch)):
        items = [items[n] for n in split_by_tokens([len(item.sample.ids) for item in items], num_parts)[part]]
    return [items] if items else []


@dataclass(frozen=True)
class RankBalance:
    """How evenly steps load the ranks. All ranks wait for the one with the most tokens in every step."""

    utilization: float  # share of the time of a rank in which it computes
    empty: float  # share of ranks without a sample in a step

    @staticmethod
    def of(lengths: list[int], world: int, *, global_batch_size: int, max_seq_len: int) -> "RankBalance":
        """Balance over the steps of a window of samples with these lengths."""
        packed = pack(lengths, max_seq_len)
        sequences = [packed[n] for n in np.random.default_rng(0).permutation(len(packed))]
        loads = []
        for step in range(steps := len(lengths) // global_batch_size):
            tokens = [lengths[item] for n in split_evenly(len(sequences), steps, step) for item in sequences[n]]
            loads.append([sum(tokens[n] for n in part) for part in split_by_tokens(tokens, world)])
        loads_SW = np.array(loads)
        return RankBalance(float(loads_SW.mean(1).sum() / loads_SW.max(1).sum()), float((loads_SW == 0).mean()))


def low_utilization_warning(lengths: list[int], world: int, *, data: DataConfig, accumulate: int) -> str | None:
    """A warning if `world` ranks would wait much of their time for samples of these lengths, with the batch size that avoids it."""
    utilization = {
        size: RankBalance.of(lengths, world, global_batch_size=size, max_seq_len=data.max_seq_len).utilization
        for size in range(data.global_batch_size, data.packing_window + 1, world * accumulate)
        if data.packing_window % size == 0
    }
    current = utilization[data.global_batch_size]
    if current >= MIN_UTILIZATION:
        return None
    advice = next(
        (
            f"a new run with data.global_batch_size={size} would compute {share:.0%}"
            for size, share in utilization.items()
            if share >= MIN_UTILIZATION
        ),
        "use fewer processes, or a larger data.packing_window and data.global_batch_size in a new run",
    )
    return (
        f"warning: {world} processes compute {current:.0%} of their time and wait for the one with the most tokens in the rest: "
        f"data.global_batch_size={data.global_batch_size} gives each {data.global_batch_size / world:.3g} samples per step; {advice}"
    )


@dataclass
class Batch:
    """Packed sequences. Indices and `cu_seqlens` count positions in the flattened batch, of B x T tokens."""

    input_ids_BT: Tensor  # int64
    labels_BT: Tensor  # int64, IGNORE where not supervised
    position_ids_BT: Tensor  # int64, restarts at each sample
    sources_BT: Tensor  # int16, position in `Mixture.sources`; -1 on padding
    images_NCHW: Tensor  # uint8; N is 0 for text only
    image_token_index_K: Tensor  # int64, positions of the image tokens
    loss_index_S: Tensor  # int64, positions whose successor is supervised
    cu_seqlens: list[int]  # start of each sample, then B x T; the padding of a sequence counts as a sample
    num_samples: int
    num_truncated: int  # text tokens that were dropped to fit `max_seq_len`
    keys: list[str]  # "source:row" per sample

    def to(self, device: torch.device) -> "Batch":
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **tensors})

    def pin_memory(self) -> "Batch":
        return Batch(**{name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in vars(self).items()})


def collate(
    sequences: list[list[EncodedSample]],
    *,
    sources: list[list[int]],
    images: list[np.ndarray],
    size: int,
    pad: int,
    image_id: int,
    keys: list[str],
) -> Batch:
    """Tensors of packed sequences, padded to the longest. Without any sequence, the batch is one padding token.

    `sources` has the shape of `sequences`; `images` are uint8 (3, size, size), in the order of the samples.
    """
    tokens = max((sum(len(sample.ids) for sample in sequence) for sequence in sequences), default=1)
    shape = (max(len(sequences), 1), tokens)
    ids = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    # Padding is one more sample of its sequence: its positions restart too, so no real token attends to it.
    positions = np.tile(np.arange(tokens), (shape[0], 1))
    source_ids = np.full(shape, -1, np.int16)
    cu_seqlens = []
    for b, sequence in enumerate(sequences):
        start = 0
        for sample, source in zip(sequence, sources[b], strict=True):
            stop = start + len(sample.ids)
            cu_seqlens.append(b * tokens + start)
            ids[b, start:stop], labels[b, start:stop], source_ids[b, start:stop] = sample.ids, sample.labels, source
            labels[b, start] = IGNORE  # the token before the first one belongs to another sample
            positions[b, start:stop] = np.arange(len(sample.ids))
            start = stop
        positions[b, start:] = np.arange(tokens - start)
        cu_seqlens += [b * tokens + start] if start < tokens else []
    pixels = torch.from_numpy(np.stack(images)) if images else torch.empty((0, 3, size, size), dtype=torch.uint8)
    input_ids_BT, labels_BT, position_ids_BT, sources_BT = (torch.from_numpy(array) for array in (ids, labels, positions, source_ids))
    return Batch(
        input_ids_BT,
        labels_BT,
        position_ids_BT,
        sources_BT,
        images_NCHW=pixels,
        # Indices are computed here, in a data worker: on a GPU, `nonzero` would synchronise in every step.
        image_token_index_K=torch.from_numpy(np.flatnonzero(ids == image_id)),
        loss_index_S=torch.from_numpy(np.flatnonzero(labels.ravel()[1:] != IGNORE)),
        cu_seqlens=[*(cu_seqlens or [0]), shape[0] * tokens],
        num_samples=sum(map(len, sequences)),
        num_truncated=sum(sample.num_truncated for sequence in sequences for sample in sequence),
        keys=keys,
    )
