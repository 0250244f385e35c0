"""One finished shard: the tar under its final name and, written after it, its part of the index.

The part is an Arrow file whose schema metadata holds what the manifest and the quarantine need to know of the shard. Its
existence says that the shard is finished; index, quarantine and manifest are made of the parts alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from data_prep.build.chunking import Chunk
from data_prep.build.serialize import SerializedChunk
from src.data.shards import SCHEMA
from src.runtime.atomic_file import atomic_file

END_OF_TAR = bytes(1024)
VARIABLE = (pa.string(), pa.binary())
PART = pa.schema([field for field in SCHEMA if field.name not in ("shard", "split", "leaks_into")])  # the rest is added when merging


@dataclass(frozen=True)
class ShardPart:
    """What the file `parts/<shard>.arrow` says."""

    path: Path
    split: str
    counts: Counter
    refused: list[tuple[str, str]]
    filtered: Counter  # reason -> rows
    licences: Counter  # licence of a record -> records; empty where none is stated
    tar: dict[str, Any]  # name, sha256, bytes, records; empty where no record was left

    def rows(self) -> pa.RecordBatch:
        with pa.OSFile(str(self.path)) as file:
            return pa.ipc.open_file(file).get_batch(0)


def part_path(folder: Path, shard: str) -> Path:
    return folder / "parts" / f"{shard}.arrow"


def is_finished(folder: Path, shard: str) -> bool:
    """Whether a former run wrote this shard and it is still there."""
    if not part_path(folder, shard).exists():
        return False
    tar = read_part(folder, shard).tar
    return not tar or ((folder / tar["name"]).exists() and (folder / tar["name"]).stat().st_size == tar["bytes"])


def read_part(folder: Path, shard: str) -> ShardPart:
    path = part_path(folder, shard)
    with pa.OSFile(str(path)) as file:
        said = json.loads(pa.ipc.open_file(file).schema.metadata[b"shard"])
    refused = [tuple(pair) for pair in said["refused"]]
    return ShardPart(
        path, shard.rpartition("-")[0], Counter(said["counts"]), refused, Counter(said["filtered"]), Counter(said["licences"]), said["tar"]
    )


def write_shard(folder: Path, shard: str, packed: Iterator[tuple[Chunk, SerializedChunk]]) -> Counter:
    """Takes the chunks of one shard as they come; gives its counts."""
    counts: Counter = Counter({"written": 0, "quarantined": 0})
    refused: list[tuple[str, str]] = []
    filtered: Counter = Counter()
    licences: Counter = Counter()
    rows: list[dict[str, Any]] = []
    tar = folder / f"{shard}.tar"
    with atomic_file(tar) as file:
        hashed = _Hashed(file)
        for chunk, part in packed:
            for row in part.rows:
                row["offset"] += hashed.size
            rows += part.rows
            refused += chunk.refused + part.refused
            counts.update(chunk.counts)
            filtered.update(chunk.filtered)
            licences.update(part.licences)
            hashed.write(part.data)
        hashed.write(END_OF_TAR)
    counts.update(written=len(rows), quarantined=len(refused))
    said = {"name": tar.name, "sha256": hashed.digest.hexdigest(), "bytes": hashed.size, "records": len(rows)}
    if not rows:
        tar.unlink()
        said = {}
    _write_part(folder, shard, rows, {"counts": counts, "refused": refused, "filtered": filtered, "licences": licences, "tar": said})
    return counts


def _write_part(folder: Path, shard: str, rows: list[dict[str, Any]], said: dict[str, Any]) -> None:
    schema = PART.with_metadata({"shard": json.dumps(said)})
    arrays = [column([row[one.name] for row in rows], one.type) for one in PART]
    with atomic_file(part_path(folder, shard)) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def column(values: list | np.ndarray, kind: pa.DataType) -> pa.Array:
    """`pa.array(values, kind)`, which would import pandas: half a second and 40 MB."""
    if kind in VARIABLE:
        return _pieces([value.encode() if isinstance(value, str) else value for value in values], kind)
    numbers = np.asarray(values, str(kind))
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _pieces(values: list[bytes], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))])


class _Hashed:
    def __init__(self, file: IO[bytes]):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
