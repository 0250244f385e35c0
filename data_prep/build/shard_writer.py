"""Writes one shard: the tar under its final name and, after it, its part of the index.

The part is an Arrow file whose schema metadata holds everything that the manifest and the quarantine need from the shard. A
shard is finished once its part exists. Index, quarantine and manifest are built from the parts alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from data_prep.build.chunking import Chunk
from data_prep.build.serialize import SerializedChunk
from src.data.shards import SCHEMA
from src.runtime.atomic_file import atomic_file

END_OF_TAR = bytes(1024)
VARIABLE = (pa.string(), pa.binary())  # types with offsets
PART = pa.schema([field for field in SCHEMA if field.name not in ("shard", "split", "leaks_into")])  # these three are added later


@dataclass(frozen=True)
class ShardPart:
    """The content of `parts/<shard>.arrow`."""

    path: Path
    split: str
    counts: Counter
    rejected: list[tuple[str, str]]  # (key, reason)
    filtered: Counter  # reason -> rows
    notes: Counter  # what the reader changed -> records
    licences: Counter  # licence -> records; "" for records that state none
    subsets: list[tuple[str, int]]  # runs of consecutive rows of one sub-set: name, "" for none, and number of rows
    tar: dict[str, Any]  # name, sha256, bytes, records; empty if the shard has no records

    def rows(self) -> pa.RecordBatch:
        """The index rows of the shard."""
        with pa.OSFile(str(self.path)) as file:
            return pa.ipc.open_file(file).get_batch(0)


def part_path(folder: Path, shard: str) -> Path:
    return folder / "parts" / f"{shard}.arrow"


def is_finished(folder: Path, shard: str) -> bool:
    """Whether an earlier run wrote this shard and its tar still exists with the recorded size."""
    if not part_path(folder, shard).exists():
        return False
    tar = read_part(folder, shard).tar
    return not tar or ((folder / tar["name"]).exists() and (folder / tar["name"]).stat().st_size == tar["bytes"])


def read_part(folder: Path, shard: str) -> ShardPart:
    path = part_path(folder, shard)
    with pa.OSFile(str(path)) as file:
        metadata = json.loads(pa.ipc.open_file(file).schema.metadata[b"shard"])
    return ShardPart(
        path=path,
        split=shard.rpartition("-")[0],
        counts=Counter(metadata["counts"]),
        rejected=[tuple(pair) for pair in metadata["refused"]],
        filtered=Counter(metadata["filtered"]),
        notes=Counter(metadata["notes"]),
        licences=Counter(metadata["licences"]),
        subsets=[(name, count) for name, count in metadata["subsets"]],
        tar=metadata["tar"],
    )


def write_shard(folder: Path, shard: str, chunks: Iterator[tuple[Chunk, SerializedChunk]]) -> Counter:
    """Writes the chunks of one shard as they arrive; returns its counts."""
    counts: Counter = Counter({"written": 0, "quarantined": 0})
    rejected: list[tuple[str, str]] = []
    filtered: Counter = Counter()
    notes: Counter = Counter()
    licences: Counter = Counter()
    rows: list[dict[str, Any]] = []
    path = folder / f"{shard}.tar"
    with atomic_file(path) as file:
        writer = _HashingWriter(file)
        for chunk, serialized in chunks:
            for row in serialized.rows:
                row["offset"] += writer.size
            rows += serialized.rows
            rejected += chunk.rejected + serialized.rejected
            counts.update(chunk.counts)
            filtered.update(chunk.filtered)
            notes.update(serialized.notes)
            licences.update(serialized.licences)
            writer.write(serialized.data)
        writer.write(END_OF_TAR)
    counts.update(written=len(rows), quarantined=len(rejected))
    tar = {"name": path.name, "sha256": writer.digest.hexdigest(), "bytes": writer.size, "records": len(rows)}
    if not rows:
        path.unlink()
        tar = {}
    subsets = [(name, len(list(run))) for name, run in groupby(row["subset"] for row in rows)]
    metadata = {"counts": counts, "refused": rejected, "filtered": filtered, "notes": notes, "licences": licences}
    metadata |= {"subsets": subsets, "tar": tar}
    _write_part(folder, shard, rows, metadata)
    return counts


def _write_part(folder: Path, shard: str, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    schema = PART.with_metadata({"shard": json.dumps(metadata)})
    arrays = [column([row[field.name] for row in rows], field.type) for field in PART]
    with atomic_file(part_path(folder, shard)) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def column(values: list | np.ndarray, kind: pa.DataType) -> pa.Array:
    """Like `pa.array(values, kind)`, without its import of pandas (0.5 s and 40 MB)."""
    if kind in VARIABLE:
        return _variable_column([value.encode() if isinstance(value, str) else value for value in values], kind)
    numbers = np.asarray(values, str(kind))
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _variable_column(values: list[bytes], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))])


class _HashingWriter:
    """Writes to a file and keeps the size and SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
