"""`index.arrow`: one uncompressed record batch, so that every column is a numpy view of the file."""

from collections import Counter
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from data_prep.build.shard_writer import PART, VARIABLE, ShardPart
from src.data.record import SPLITS
from src.data.shards import SCHEMA, numpy_view
from src.runtime.atomic_file import atomic_file

OFFSET = np.dtype(np.int32)  # of a string or of bytes in its column


def write_index(folder: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    with atomic_file(folder / "index.arrow") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(batch)


def join_parts(folder: Path, parts: list[ShardPart]) -> None:
    """The same file out of the parts, which have no `leaks_into` yet. It is laid out empty and filled in place, so its memory is
    that of a column or two, where building the batch would take three times the index."""
    sizes = Counter[str]()
    for part in parts:
        rows = part.rows()
        sizes.update({name: int(_offsets(rows, name)[-1]) for name in PART.names if PART.field(name).type in VARIABLE})
    with atomic_file(folder / "index.arrow") as file:
        places = _lay_out(file, sum(part.tar["records"] for part in parts), sizes)
        at, used = 0, Counter[str]()
        for shard, part in enumerate(parts):
            rows = part.rows()
            _put(file, places["shard"][0], at, np.full(len(rows), shard, np.int32))
            _put(file, places["split"][0], at, np.full(len(rows), SPLITS.index(part.split), np.int8))
            for name in PART.names:
                if PART.field(name).type in VARIABLE:
                    offsets = _offsets(rows, name)
                    _put(file, places[name][0], at + 1, offsets[1:] + OFFSET.type(used[name]))
                    if offsets[-1]:
                        _put(file, places[name][1], used[name], np.frombuffer(rows.column(name).buffers()[2], np.uint8, offsets[-1]))
                        used[name] += int(offsets[-1])
                else:
                    _put(file, places[name][0], at, numpy_view(rows.column(name)))
            at += len(rows)


def _offsets(rows: pa.RecordBatch, name: str) -> np.ndarray:
    return np.frombuffer(rows.column(name).buffers()[1], OFFSET, len(rows) + 1)


def _put(file: IO[bytes], place: int, at: int, values: np.ndarray) -> None:
    file.seek(place + at * values.itemsize)
    file.write(values.tobytes())


def _lay_out(file: IO[bytes], total: int, sizes: Counter[str]) -> dict[str, list[int]]:
    """Writes an index of zeros; gives the places of each column's values or, of variable ones, of its offsets and its bytes."""
    zeros = np.zeros(max([8 * total, *sizes.values()]), np.uint8)  # never touched, so most of it is never in memory
    arrays = []
    for field in SCHEMA:
        if field.type in VARIABLE:
            offsets = np.zeros(total + 1, OFFSET)
            offsets[-1] = sizes[field.name]
            buffers = [offsets, zeros[: sizes[field.name]]]
        else:
            buffers = [zeros[: total * np.dtype(str(field.type)).itemsize]]
        arrays.append(pa.Array.from_buffers(field.type, total, [None, *map(pa.py_buffer, buffers)]))
    with pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
    file.flush()
    with pa.memory_map(file.name) as mapped:
        whole = mapped.read_buffer()
        batch = pa.ipc.open_file(whole).get_batch(0)
        return {name: [buffer.address - whole.address for buffer in batch.column(name).buffers() if buffer] for name in SCHEMA.names}
