"""A chunk of records -> the bytes that go into a tar and the index rows that describe them. Runs in the worker processes."""

from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from data_prep.cut import Chunk, hash64, text, text_hash
from data_prep.encode import BadImage, Encoded, encode
from src.data.record import QUESTION_TYPES, Record, tar_bytes


@dataclass
class Packed:
    data: bytes = b""
    rows: list[dict[str, Any]] = field(default_factory=list)  # columns of the index; offsets count from the start of `data`
    refused: list[tuple[str, str]] = field(default_factory=list)


def pack(chunk: Chunk, *, max_side: int, quality: int) -> Packed:
    spans, rows, refused, offset = [], [], [], 0
    encoded = cache(partial(encode, max_side=max_side, quality=quality))  # neighbours often ask about one image
    for record in chunk.records:
        try:
            images = [encoded(image) for image in record.images]
        except BadImage as error:
            refused.append((record.key, str(error)))
            continue
        record.images = [image.jpeg for image in images]
        span = tar_bytes(record)
        rows.append(_row(record, images, offset=offset, span=span))
        spans.append(span)
        offset += len(span)
    return Packed(b"".join(spans), rows, refused)


def _row(record: Record, images: list[Encoded], *, offset: int, span: bytes) -> dict[str, Any]:
    first = images[0] if images else Encoded(b"", 0, 0, 0)
    return {
        "key": record.key,
        "offset": offset,
        "length": len(span),
        "json_length": int(span[124:135], 8),  # the size in the first header
        "num_images": len(images),
        "type": QUESTION_TYPES.index(record.type),
        "group": hash64(record.group or record.key) >> 1,
        "text_length": len(text(record)),
        "width": first.width,
        "height": first.height,
        "image_hash": first.hash,
        "more_hashes": b"".join(image.hash.to_bytes(8, "little") for image in images[1:]),
        "text_hash": text_hash(record),
    }
