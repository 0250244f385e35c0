"""Encodes a chunk of records into tar bytes and the index rows that describe them. Runs in the worker processes."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from data_prep.build.chunking import Chunk, hash64, record_text, text_hash
from data_prep.build.encode import EncodedImage, InvalidImage, encode_image
from data_prep.build.token_counts import count_tokens
from src.data.record import QUESTION_TYPES, Record, tar_parts


@dataclass
class SerializedChunk:
    data: bytes = b""  # consecutive tar members
    rows: list[dict[str, Any]] = field(default_factory=list)  # index rows; offsets count from the start of `data`
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (key, reason) of records with an invalid image
    notes: Counter = field(default_factory=Counter)  # what the reader changed -> records
    licences: Counter = field(default_factory=Counter)  # licence -> records; "" for records that state none


def serialize_chunk(chunk: Chunk, *, max_side: int, quality: int, tokenizer: Path | None = None) -> SerializedChunk:
    """Encodes the images of a chunk, counts the tokens of its texts and writes its tar members.

    `max_side` (pixels) and `quality` are those of `encode_image`; `tokenizer` is the file that `count_tokens` loads.
    """
    data: list[bytes] = []
    rows, rejected, notes, licences, offset = [], [], Counter[str](), [], 0
    encode = cache(partial(encode_image, max_side=max_side, quality=quality))  # consecutive questions often share an image
    for record, changes, tokens in zip(chunk.records, chunk.notes, count_tokens(chunk.records, tokenizer), strict=True):
        try:
            images = [encode(image) for image in record.images]
        except InvalidImage as error:
            rejected.append((record.key, str(error)))
            continue
        record.images = [image.jpeg for image in images]
        parts = tar_parts(record)
        length = sum(map(len, parts))
        rows.append(_index_row(record, images, offset=offset, length=length, json_length=len(parts[1]), tokens=tokens))
        data += parts
        notes.update(changes)
        licences.append(record.licence)
        offset += length
    return SerializedChunk(b"".join(data), rows, rejected, notes, Counter(licences))


def _index_row(record: Record, images: list[EncodedImage], *, offset: int, length: int, json_length: int, tokens: int) -> dict[str, Any]:
    text = record_text(record)
    first = images[0] if images else EncodedImage(b"", 0, 0, 0)
    return {
        "key": record.key,
        "offset": offset,
        "length": length,
        "json_length": json_length,
        "num_images": len(images),
        "type": QUESTION_TYPES.index(record.type),
        "group": hash64(record.group or record.key) >> 1,
        "text_length": len(text),
        "tokens": tokens,
        "width": first.width,
        "height": first.height,
        "image_hash": first.hash,
        "more_hashes": b"".join([image.hash.to_bytes(8, "little") for image in images[1:]]),
        "text_hash": text_hash(text),
        "subset": str(record.meta.get("dataset") or ""),  # not a column of the index, see data_prep/build/index.py
    }
