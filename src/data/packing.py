"""Samples -> rows of a fixed token budget -> the steps and slots that train on them -> tensors.

Legend: B rows, T tokens, N images, C channels, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.data.prompt import IGNORE, Encoded


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


def deal(num_rows: int, num_slots: int, slot: int) -> range:
    """The rows of one slot when `num_rows` are dealt evenly over `num_slots`; counts differ by at most one."""
    return range(num_rows * slot // num_slots, num_rows * (slot + 1) // num_slots)


@dataclass
class Batch:
    """Packed rows. A text-only batch has `images` of length 0. `sources` is -1 on padding."""

    ids_BT: Tensor  # int64
    labels_BT: Tensor  # int64, IGNORE where not supervised
    positions_BT: Tensor  # int64, restarts at each sample
    sources_BT: Tensor  # int16, number of the source in the mix
    images_NCHW: Tensor  # uint8
    places_K: Tensor  # int64, the image tokens, in the line of all B x T places
    predicts_S: Tensor  # int64, the tokens whose successor is supervised, in the same line
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
    rows: list[list[Encoded]], *, sources: list[list[int]], images: list[np.ndarray], size: int, pad: int, image_id: int, keys: list[str]
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
    ids_BT, labels_BT, positions_BT, sources_BT = (torch.from_numpy(array) for array in (ids, labels, positions, owners))
    return Batch(
        ids_BT,
        labels_BT,
        positions_BT,
        sources_BT,
        images_NCHW=pixels,
        # Found here, where it costs a worker nothing: on a GPU, looking for them would make every step wait.
        places_K=torch.from_numpy(np.flatnonzero(ids == image_id)),
        predicts_S=torch.from_numpy(np.flatnonzero(labels.ravel()[1:] != IGNORE)),
        edges=[*(edges or [0]), shape[0] * tokens],
        num_samples=sum(map(len, rows)),
        cut=sum(sample.cut for row in rows for sample in row),
        keys=keys,
    )
