"""Writes `index.arrow`: one uncompressed record batch, so that every column is a NumPy view of the file.

A source with sub-sets (`meta.dataset` of its records) also gets `subsets.arrow`, a dictionary-encoded column with the sub-set of each row.
"""

from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from data_prep.build.shard_writer import PART, VARIABLE, ShardPart, column
from src.data.record import SPLITS
from src.data.shards import SCHEMA, SUBSETS, numpy_view
from src.runtime.atomic_file import atomic_file
from src.runtime.hashing import file_sha256

OFFSET = np.dtype(np.int32)  # of a string or binary value in its column


def write_index(folder: Path, columns: dict[str, pa.Array]) -> None:
    """Writes the index from complete columns."""
    batch = pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    with atomic_file(folder / "index.arrow") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(batch)


def join_parts(folder: Path, parts: list[ShardPart]) -> None:
    """Writes the same file as `write_index` from the parts of the shards, with an empty `leaks_into`.

    The file is laid out with zeros and filled in place, which needs the memory of one or two columns. Building the record
    batch in memory would need three times the size of the index.
    """
    data_sizes = Counter[str]()
    for part in parts:
        rows = part.rows()
        data_sizes.update({name: int(_offsets(rows, name)[-1]) for name in PART.names if PART.field(name).type in VARIABLE})
    with atomic_file(folder / "index.arrow") as file:
        positions = _lay_out(file, sum(part.tar["records"] for part in parts), data_sizes)
        row_start, data_start = 0, Counter[str]()
        for shard, part in enumerate(parts):
            rows = part.rows()
            _write_values(file, positions["shard"][0], row_start, np.full(len(rows), shard, np.int32))
            _write_values(file, positions["split"][0], row_start, np.full(len(rows), SPLITS.index(part.split), np.int8))
            for name in PART.names:
                if PART.field(name).type in VARIABLE:
                    offsets = _offsets(rows, name)
                    _write_values(file, positions[name][0], row_start + 1, offsets[1:] + OFFSET.type(data_start[name]))
                    if offsets[-1]:
                        data = np.frombuffer(rows.column(name).buffers()[2], np.uint8, offsets[-1])
                        _write_values(file, positions[name][1], data_start[name], data)
                        data_start[name] += int(offsets[-1])
                else:
                    _write_values(file, positions[name][0], row_start, numpy_view(rows.column(name)))
            row_start += len(rows)


def write_subsets(folder: Path, parts: list[ShardPart]) -> dict[str, Any]:
    """Writes `subsets.arrow`; returns its size and checksum, and the records per sub-set. Without sub-sets: no file, and no entry."""
    runs = [run for part in parts for run in part.subsets]
    names = sorted({name for name, _ in runs})
    if names in ([], [""]):
        (folder / SUBSETS).unlink(missing_ok=True)
        return {}
    numbers, lengths = [names.index(name) for name, _ in runs], [count for _, count in runs]
    values = pa.DictionaryArray.from_arrays(column(np.repeat(numbers, lengths), pa.int32()), column(names, pa.string()))
    batch = pa.record_batch([values], names=["subset"])
    with atomic_file(folder / SUBSETS) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    records = dict(zip(names, np.bincount(numbers, lengths).astype(int).tolist(), strict=True))
    return {"bytes": (folder / SUBSETS).stat().st_size, "sha256": file_sha256(folder / SUBSETS), "records": records}


def _offsets(rows: pa.RecordBatch, name: str) -> np.ndarray:
    return np.frombuffer(rows.column(name).buffers()[1], OFFSET, len(rows) + 1)


def _write_values(file: IO[bytes], position: int, start: int, values: np.ndarray) -> None:
    """Writes values into the buffer at byte `position`, from element `start` on."""
    file.seek(position + start * values.itemsize)
    file.write(values.tobytes())


def _lay_out(file: IO[bytes], total: int, data_sizes: Counter[str]) -> dict[str, list[int]]:
    """Writes an index of zeros. Returns the byte positions of each column's buffers: values, or offsets and data."""
    zeros = np.zeros(max([8 * total, *data_sizes.values()]), np.uint8)  # untouched pages take no memory
    arrays = []
    for field in SCHEMA:
        if field.type in VARIABLE:
            offsets = np.zeros(total + 1, OFFSET)
            offsets[-1] = data_sizes[field.name]
            buffers = [offsets, zeros[: data_sizes[field.name]]]
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
