"""A chunk of records -> the bytes that go into a tar and the index rows that describe them. Runs in the worker processes."""

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
    data: bytes = b""
    rows: list[dict[str, Any]] = field(default_factory=list)  # columns of the index; offsets count from the start of `data`
    refused: list[tuple[str, str]] = field(default_factory=list)
    licences: Counter = field(default_factory=Counter)  # licence of a record -> records; empty where none is stated


def serialize_chunk(chunk: Chunk, *, max_side: int, quality: int, tokenizer: Path | None = None) -> SerializedChunk:
    data: list[bytes] = []
    rows, refused, licences, offset = [], [], [], 0
    encoded = cache(partial(encode_image, max_side=max_side, quality=quality))  # neighbours often ask about one image
    for record, tokens in zip(chunk.records, count_tokens(chunk.records, tokenizer), strict=True):
        try:
            images = [encoded(image) for image in record.images]
        except InvalidImage as error:
            refused.append((record.key, str(error)))
            continue
        record.images = [image.jpeg for image in images]
        parts = tar_parts(record)
        length = sum(map(len, parts))
        rows.append(_index_row(record, images, offset=offset, length=length, json_length=len(parts[1]), tokens=tokens))
        data += parts
        licences.append(record.licence)
        offset += length
    return SerializedChunk(b"".join(data), rows, refused, Counter(licences))


def _index_row(record: Record, images: list[EncodedImage], *, offset: int, length: int, json_length: int, tokens: int) -> dict[str, Any]:
    said = record_text(record)
    first = images[0] if images else EncodedImage(b"", 0, 0, 0)
    return {
        "key": record.key,
        "offset": offset,
        "length": length,
        "json_length": json_length,
        "num_images": len(images),
        "type": QUESTION_TYPES.index(record.type),
        "group": hash64(record.group or record.key) >> 1,
        "text_length": len(said),
        "tokens": tokens,
        "width": first.width,
        "height": first.height,
        "image_hash": first.hash,
        "more_hashes": b"".join([image.hash.to_bytes(8, "little") for image in images[1:]]),
        "text_hash": text_hash(said),
    }
