"""The stream of rows of a reader -> checked chunks, dealt to shards at fixed bounds.

A shard is a stretch of input rows; a chunk is what a worker encodes at once. Both depend on the rows alone, so neither the
number of workers nor an interruption changes a byte.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import xxhash

from data_prep.build.hash_set import HashSet
from data_prep.readers.rows import FilteredRow, InvalidRow, Row
from src.data.record import Record, encode_json

SHARD_ROWS, SHARD_BYTES = 4096, 64 << 20
CHUNK_ROWS, CHUNK_BYTES = 64, 4 << 20
KEY_LENGTH = 80  # a USTAR name holds 100 bytes


@dataclass
class Chunk:
    shard: str  # train-000003
    records: list[Record] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (key, reason): quarantined before any image was looked at
    counts: Counter = field(default_factory=Counter)  # in, duplicates, filtered
    filtered: Counter = field(default_factory=Counter)  # reason -> rows
    last: bool = False
    size: int = 0  # bytes as they came


def to_chunks(rows: Iterable[Row], *, split: str, keys: HashSet) -> Iterator[Chunk]:
    """Chunks of at most 64 records or 4 MB, and shards of at most 4,096 rows or 64 MB (one larger row stands alone).

    A row without a usable question, answer or key is refused. A duplicate (the same images and the same normalised text, in
    the same split) is left out, the first is kept. `keys` remembers the keys of the splits that came before.
    """
    texts, number, shard_rows, shard_bytes = HashSet(), 0, 0, 0
    chunk = Chunk(f"{split}-{number:06d}")
    for row in rows:
        size = _size(row)
        if shard_rows and (shard_rows == SHARD_ROWS or shard_bytes + size > SHARD_BYTES):
            chunk.last = True
            yield chunk
            number, shard_rows, shard_bytes = number + 1, 0, 0
            chunk = Chunk(f"{split}-{number:06d}")
        elif chunk.counts["in"] >= CHUNK_ROWS or (chunk.size and chunk.size + size > CHUNK_BYTES):
            yield chunk
            chunk = Chunk(chunk.shard)
        shard_rows, shard_bytes, chunk.size = shard_rows + 1, shard_bytes + size, chunk.size + size
        _assign_shards(row, chunk, keys=keys, texts=texts)
    if shard_rows:
        chunk.last = True
        yield chunk


def _assign_shards(row: Row, chunk: Chunk, *, keys: HashSet, texts: HashSet) -> None:
    chunk.counts["in"] += 1
    if isinstance(row, FilteredRow):
        chunk.counts["filtered"] += 1
        chunk.filtered[row.reason.partition(":")[0]] += 1
        return
    if isinstance(row, InvalidRow):
        chunk.refused.append((row.key, row.reason))
        return
    reason = record_fault(row)
    if not reason and not texts.add(content_hash(row)):
        chunk.counts["duplicates"] += 1
        return
    if not reason and not keys.add(hash64(row.key)):
        reason = "duplicate key"
    if reason:
        chunk.refused.append((row.key, reason))
        return
    safe = tar_key(row.key)
    if safe != row.key:
        row.meta, row.key = {**row.meta, "id": row.key}, safe
    chunk.records.append(row)


def record_fault(record: Record) -> str:
    """Why a record cannot be used; empty for a good one."""
    if not record.key:
        return "empty key"
    if not record.caption and not record.turns:
        return "neither question nor caption"
    if any(not question.strip() for question, _ in record.turns):
        return "empty question"
    if any(not answer.strip() for _, answer in record.turns):
        return "empty answer"
    try:
        "".join((record.key, record.group, record.licence, record_text(record), *record.references, *record.choices)).encode()
        encode_json(record.meta)
    except UnicodeEncodeError:
        return "text is not valid Unicode"
    except TypeError as error:
        return f"meta cannot be written as JSON: {error}"
    return ""


def record_text(record: Record) -> str:
    return "\n".join(record_texts(record))


def record_texts(record: Record) -> list[str]:
    """The caption, or every question and answer."""
    return [record.caption] if record.caption else [part for turn in record.turns for part in turn]


def hash64(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def text_hash(said: str) -> int:
    """Of the text of a record in small letters and with single blanks."""
    return hash64(" ".join(said.lower().split()))


def content_hash(record: Record) -> int:
    state = xxhash.xxh3_64(text_hash(record_text(record)).to_bytes(8))
    for image in record.images:
        state.update(xxhash.xxh3_64_digest(image))
    return state.intdigest()


def tar_key(key: str) -> str:
    """The key as a member name: letters, digits, `-` and `_`. A key that had to change gets a hash, or two could become one."""
    if re.fullmatch(rf"[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}", key):
        return key
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)[: KEY_LENGTH - 9] + f"-{hash64(key) >> 32:08x}"


def _size(row: Row) -> int:
    return sum(map(len, row.images)) + len(record_text(row)) if isinstance(row, Record) else 0
