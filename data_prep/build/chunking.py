"""Splits the rows of a reader into checked chunks and assigns each chunk to a shard.

A shard is a run of consecutive input rows. A chunk is the part of a shard that one worker encodes at once. Both depend on the
rows alone, so the number of workers and interruptions never change the output bytes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import xxhash

from data_prep.readers.hash_set import HashSet
from data_prep.readers.rows import FilteredRow, InvalidRow, Note, Row, type_name
from src.data.record import Record, encode_json

SHARD_ROWS, SHARD_BYTES = 4096, 64 << 20
CHUNK_ROWS, CHUNK_BYTES = 64, 4 << 20
MAX_TEXT = 1 << 20  # characters of a record; a longer text is taken for a damaged file
REPEATED_KEY = "key of another split: the split is put in front"
KEY_LENGTH = 80  # a USTAR member name is limited to 100 bytes, including the extension


@dataclass
class Chunk:
    shard: str  # for example train-000003
    records: list[Record] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (key, reason) of rows quarantined before their images are decoded
    counts: Counter = field(default_factory=Counter)  # in, duplicates, filtered
    filtered: Counter = field(default_factory=Counter)  # reason -> rows
    notes: list[list[str]] = field(default_factory=list)  # per record, what the reader changed in it
    last: bool = False  # the last chunk of its shard
    size: int = 0  # bytes of the raw images and text


def to_chunks(rows: Iterable[Row | Note], *, split: str, keys: HashSet) -> Iterator[Chunk]:
    """Yields chunks of at most 64 rows or 4 MB, grouped into shards of at most 4,096 rows or 64 MB.

    A single row above a limit forms its own chunk or shard. A row without a usable question, answer or key is rejected. A
    duplicate (same images and same normalised text within the split) is dropped; the first occurrence stays. `keys` holds
    the keys of the previous splits and is extended, so that a key is unique in its source. A key that an earlier split has, as in
    data whose ids begin anew in each file, gets the split in front.
    """
    content_hashes, split_keys, number, shard_rows, shard_bytes, accepted = HashSet(), HashSet(), 0, 0, 0, False
    chunk = Chunk(f"{split}-{number:06d}")
    for row in rows:
        if isinstance(row, Note):
            if accepted:
                chunk.notes[-1].append(row.text)
            continue
        if isinstance(row, Record) and (wrong := [image for image in row.images if not isinstance(image, bytes)]):
            row = InvalidRow(row.key, f"unexpected field type: image is {type_name(wrong[0])}, not bytes")
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
        accepted = _add_row(row, chunk, split=split, keys=keys, split_keys=split_keys, content_hashes=content_hashes)
    if shard_rows:
        chunk.last = True
        yield chunk


def _add_row(row: Row, chunk: Chunk, *, split: str, keys: HashSet, split_keys: HashSet, content_hashes: HashSet) -> bool:
    """Adds a row to the records, the rejected rows or the counts of a chunk; returns whether it is a record."""
    chunk.counts["in"] += 1
    if isinstance(row, FilteredRow):
        chunk.counts["filtered"] += 1
        chunk.filtered[row.reason.partition(":")[0]] += 1
        return False
    if isinstance(row, InvalidRow):
        chunk.rejected.append((row.key, " ".join(row.reason.split())))  # one line, also if it quotes a name with a line break
        return False
    reason = record_fault(row)
    if not reason and not content_hashes.add(content_hash(row)):
        chunk.counts["duplicates"] += 1
        return False
    key = "" if reason else _unique_key(row.key, split=split, keys=keys, split_keys=split_keys)
    if not key:
        chunk.rejected.append((row.key, reason or "duplicate key"))
        return False
    notes = [] if key == row.key else [REPEATED_KEY]
    safe_key = tar_key(key)
    if safe_key != row.key:
        row.meta, row.key = {**row.meta, "id": row.key}, safe_key
    chunk.records.append(row)
    chunk.notes.append(notes)
    return True


def _unique_key(key: str, *, split: str, keys: HashSet, split_keys: HashSet) -> str:
    """The key, with the split in front if an earlier split has it; empty for a key that this split has already."""
    if not split_keys.add(hash64(key)):
        return ""
    return next((name for name in (key, f"{split}-{key}") if keys.add(hash64(name))), "")


def record_fault(record: Record) -> str:
    """The reason why a record cannot be used; empty for a valid record."""
    if not record.key:
        return "empty key"
    if not record.caption and not record.turns:
        return "neither question nor caption"
    if any(not question.strip() for question, _ in record.turns):
        return "empty question"
    if any(not answer.strip() for _, answer in record.turns):
        return "empty answer"
    if (length := sum(map(len, (*record_texts(record), record.system, *record.references, *record.choices)))) > MAX_TEXT:
        return f"text too long: {length:,} characters; at most {MAX_TEXT:,}"
    try:
        "".join((record.key, record.group, record.licence, record_text(record), *record.references, *record.choices)).encode()
        encode_json(record.meta)
    except UnicodeEncodeError:
        return "text is not valid Unicode"
    except TypeError as error:
        return f"meta cannot be written as JSON: {error}"
    return ""


def record_text(record: Record) -> str:
    """The texts of a record, joined by line breaks."""
    return "\n".join(record_texts(record))


def record_texts(record: Record) -> list[str]:
    """The caption, or every question and answer."""
    return [record.caption] if record.caption else [part for turn in record.turns for part in turn]


def hash64(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))  # the key of a rejected row may be no valid Unicode


def text_hash(text: str) -> int:
    """64-bit hash of a text in lower case with runs of white space replaced by one space."""
    return hash64(" ".join(text.lower().split()))


def content_hash(record: Record) -> int:
    """64-bit hash of the normalised text, of the image bytes, and of the system text of a conversation that has one."""
    state = xxhash.xxh3_64(text_hash(record_text(record)).to_bytes(8))
    if record.system:
        state.update(b"system" + text_hash(record.system).to_bytes(8))
    for image in record.images:
        state.update(xxhash.xxh3_64_digest(image))
    return state.intdigest()


def tar_key(key: str) -> str:
    """The key as a tar member name: letters, digits, `-` and `_`. A changed key gets a hash suffix, so that two keys stay distinct."""
    if re.fullmatch(rf"[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}", key):
        return key
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)[: KEY_LENGTH - 9] + f"-{hash64(key) >> 32:08x}"


def _size(row: Row) -> int:
    return sum(map(len, row.images)) + len(record_text(row)) if isinstance(row, Record) else 0
