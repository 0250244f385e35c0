"""What stands in a wandb run file: wandb itself can only upload it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768


def read_records(path: Path) -> Iterator:
    """A LevelDB log (blocks of 32 KiB, 7 bytes before each piece) behind a header of 7 bytes; what a kill cut short is left out."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, at, whole = path.read_bytes(), 7, b""
    while True:
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
        if at + 7 > len(data):
            return
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0 or at + 7 + length > len(data):
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def record_items(found) -> dict:
    """The values of a record's items, by key."""
    return {"/".join([item.key] if item.key else item.nested_key): json.loads(item.value_json) for item in found}


def read_history(path: Path) -> list[dict]:
    """What was logged, in order."""
    return [record_items(record.history.item) for record in read_records(path) if record.HasField("history")]
