"""Reads a wandb run file; wandb itself can only upload it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768  # bytes
HEADER = 7  # bytes: of the file, and of each chunk (checksum, length, type)


def read_records(path: Path) -> Iterator:
    """Yields the records of a LevelDB log (blocks of 32 KiB) with a file header; ignores a record that a kill left incomplete."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, offset, record = path.read_bytes(), HEADER, b""
    while True:
        if BLOCK - offset % BLOCK < HEADER:
            offset += BLOCK - offset % BLOCK
        if offset + HEADER > len(data):
            return
        _, length, chunk_type = struct.unpack("<IHB", data[offset : offset + HEADER])
        if chunk_type == 0 or offset + HEADER + length > len(data):
            return
        record += data[offset + HEADER : offset + HEADER + length]
        offset += HEADER + length
        if chunk_type in (1, 4):  # a complete record, or the last chunk of one
            yield Record.FromString(record)
            record = b""


def record_items(items) -> dict:
    """The values of a record's items, by key."""
    return {"/".join([item.key] if item.key else item.nested_key): json.loads(item.value_json) for item in items}


def read_history(path: Path) -> list[dict]:
    """The logged rows, in order."""
    return [record_items(record.history.item) for record in read_records(path) if record.HasField("history")]
