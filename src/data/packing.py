"""Samples -> rows of a fixed token budget -> the steps, ranks and slots that train on them -> tensors.

Legend: B rows, T tokens, N images, C channels, H height, W width.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.config.train import DataConfig
from src.data.prompt import IGNORE, EncodedSample


def pack(lengths: list[int], budget: int) -> list[list[int]]:
    """Best fit decreasing: item numbers per row. Every item exactly once; no row above `budget`.

    Rows are kept by the room that they have left, and a bit mask over these rooms finds the tightest fit at once.
    """
    assert max(lengths, default=0) <= budget
    by_room: list[list[int]] = [[] for _ in range(budget + 1)]
    mask = 0
    rows: list[list[int]] = []
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[item]
        fits = mask >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                mask &= ~(1 << room)
        else:
            room, row = budget, len(rows)
            rows.append([])
        rows[row].append(item)
        by_room[room - length].append(row)
        mask |= 1 << (room - length)
    return rows


def split_evenly(num_rows: int, num_slots: int, slot: int) -> range:
    """The rows of one slot when `num_rows` are dealt evenly over `num_slots`; counts differ by at most one."""
    return range(num_rows * slot // num_slots, num_rows * (slot + 1) // num_slots)


def split(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Item numbers per part, ascending: each item, longest first, goes to the part with the fewest tokens.

    Token counts differ by at most the longest item, and no part is empty while another holds two items.
    """
    items: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        tokens, part = heap[0]
        items[part].append(item)
        heapq.heapreplace(heap, (tokens + lengths[item], part))
    return [sorted(part) for part in items]


Item = tuple[EncodedSample, int, int]  # a sample, the number of its source, its row in the index


def share(rows: list[list[Item]], *, rank: int, world: int, slot: int, slots: int) -> list[list[Item]]:
    """What one slot of one rank takes of the rows of a step.

    A step has few rows (17 of 2,048 tokens for 128 samples), so whole rows would leave many of several ranks waiting. Instead its
    samples are split so that ranks, and slots within a rank, get equal numbers of tokens; those of a slot form one row without padding.
    """
    if world == 1:
        return [rows[n] for n in split_evenly(len(rows), slots, slot)]
    items = [item for row in rows for item in row]
    for parts, part in ((world, rank), (slots, slot)):
        items = [items[n] for n in split([len(sample.ids) for sample, _, _ in items], parts)[part]]
    return [items] if items else []


ENOUGH = 0.9  # of the time of several ranks; below it, their waiting for each other is worth a warning


@dataclass(frozen=True)
class Balance:
    """How evenly steps load the ranks, which wait for the fullest of them in every step."""

    used: float  # share of the time of a rank in which it computes
    empty: float  # share of ranks without a sample in a step

    @staticmethod
    def of(lengths: list[int], world: int, *, global_batch_size: int, max_seq_len: int) -> "Balance":
        """Of the steps of a window of samples of these lengths."""
        packed = pack(lengths, max_seq_len)
        rows = [packed[n] for n in np.random.default_rng(0).permutation(len(packed))]
        loads = []
        for step in range(steps := len(lengths) // global_batch_size):
            tokens = [lengths[item] for n in split_evenly(len(rows), steps, step) for item in rows[n]]
            loads.append([sum(tokens[n] for n in part) for part in split(tokens, world)])
        loads_SW = np.array(loads)
        return Balance(float(loads_SW.mean(1).sum() / loads_SW.max(1).sum()), float((loads_SW == 0).mean()))


def starvation(lengths: list[int], world: int, *, data: DataConfig, slots: int) -> str | None:
    """A warning with the numbers that fix it, where `world` ranks would wait much of their time for samples of these lengths."""
    used = {
        size: Balance.of(lengths, world, global_batch_size=size, max_seq_len=data.max_seq_len).used
        for size in range(data.global_batch_size, data.packing_window + 1, world * slots)
        if data.packing_window % size == 0
    }
    if used[data.global_batch_size] >= ENOUGH:
        return None
    larger = [f"a new run with data.global_batch_size={size} would compute {part:.0%}" for size, part in used.items() if part >= ENOUGH]
    cure = [*larger, "take fewer processes, or a larger data.packing_window and data.global_batch_size in a new run"][0]
    return (
        f"warning: {world} processes compute {used[data.global_batch_size]:.0%} of their time and wait for the fullest of them in the rest: "
        f"data.global_batch_size={data.global_batch_size} gives each {data.global_batch_size / world:.3g} samples per step; {cure}"
    )


@dataclass
class Batch:
    """Packed rows. A text-only batch has `images` of length 0. `sources` is -1 on padding."""

    input_ids_BT: Tensor  # int64
    labels_BT: Tensor  # int64, IGNORE where not supervised
    position_ids_BT: Tensor  # int64, restarts at each sample
    sources_BT: Tensor  # int16, number of the source in the mix
    images_NCHW: Tensor  # uint8
    image_token_index_K: Tensor  # int64, the image tokens, in the line of all B x T places
    loss_index_S: Tensor  # int64, the tokens whose successor is supervised, in the same line
    edges: list[int]  # where samples begin, in the line of all B x T places, and its end; padding is a sample of its own
    num_samples: int
    cut: int  # text tokens of its samples that did not fit
    keys: list[str]

    def to(self, device: torch.device) -> "Batch":
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **tensors})

    def pin_memory(self) -> "Batch":
        return Batch(**{name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in vars(self).items()})


def collate(
    rows: list[list[EncodedSample]],
    *,
    sources: list[list[int]],
    images: list[np.ndarray],
    size: int,
    pad: int,
    image_id: int,
    keys: list[str],
) -> Batch:
    """Rows of samples as tensors, padded to the longest of them; no row at all gives one row of one padding token."""
    tokens = max((sum(len(sample.ids) for sample in row) for row in rows), default=1)
    shape = (max(len(rows), 1), tokens)
    ids = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    # Padding is one more sample of its row: its positions restart too, so no real token attends to it.
    positions = np.tile(np.arange(tokens), (shape[0], 1))
    owners = np.full(shape, -1, np.int16)
    edges = []
    for b, row in enumerate(rows):
        at = 0
        for sample, source in zip(row, sources[b], strict=True):
            span = slice(at, at + len(sample.ids))
            edges.append(b * tokens + at)
            ids[b, span], labels[b, span], owners[b, span] = sample.ids, sample.labels, source
            labels[b, at] = IGNORE  # the first token of a sample is predicted from nothing, or worse: from its neighbour
            positions[b, span] = np.arange(len(sample.ids))
            at += len(sample.ids)
        positions[b, at:] = np.arange(tokens - at)
        edges += [b * tokens + at] if at < tokens else []
    pixels = torch.from_numpy(np.stack(images)) if images else torch.empty((0, 3, size, size), dtype=torch.uint8)
    input_ids_BT, labels_BT, position_ids_BT, sources_BT = (torch.from_numpy(array) for array in (ids, labels, positions, owners))
    return Batch(
        input_ids_BT,
        labels_BT,
        position_ids_BT,
        sources_BT,
        images_NCHW=pixels,
        # Found here, where it costs a worker nothing: on a GPU, looking for them would make every step wait.
        image_token_index_K=torch.from_numpy(np.flatnonzero(ids == image_id)),
        loss_index_S=torch.from_numpy(np.flatnonzero(labels.ravel()[1:] != IGNORE)),
        edges=[*(edges or [0]), shape[0] * tokens],
        num_samples=sum(map(len, rows)),
        cut=sum(sample.cut for row in rows for sample in row),
        keys=keys,
    )
