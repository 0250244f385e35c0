"""A chunk of records -> the bytes that go into a tar and the index rows that describe them. Runs in the worker processes."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from data_prep.cut import Chunk, hash64, text, text_hash
from data_prep.encode import BadImage, Encoded, encode
from src.data.record import QUESTION_TYPES, Record, tar_bytes, to_json
from src.errors import UserError


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
        rows.append(_row(record, images, offset, len(span)))
        spans.append(span)
        offset += len(span)
    return Packed(b"".join(spans), rows, refused)


def _row(record: Record, images: list[Encoded], offset: int, length: int) -> dict[str, Any]:
    first = images[0] if images else Encoded(b"", 0, 0, 0)
    return {
        "key": record.key,
        "offset": offset,
        "length": length,
        "json_length": len(to_json(record)),
        "num_images": len(images),
        "type": QUESTION_TYPES.index(record.type),
        "group": hash64(record.group or record.key) >> 1,
        "text_length": len(text(record)),
        "width": first.width,
        "height": first.height,
        "image_hash": first.hash,
        "text_hash": text_hash(record),
    }


@contextmanager
def workers(number: int) -> Iterator[Callable[..., Iterator[tuple[Chunk, Packed]]]]:
    """Gives `map(function, chunks)`, in order, over that many processes; 1 means this process.

    At most two chunks per worker are in flight, which bounds the memory. A killed worker is a `UserError`.
    """
    if number == 1:
        yield lambda function, chunks: ((chunk, function(chunk)) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=_start)
    try:
        yield lambda function, chunks: _ordered(pool, function, chunks, 2 * number)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ordered(
    pool: ProcessPoolExecutor, function: Callable[[Chunk], Packed], chunks: Iterable[Chunk], ahead: int
) -> Iterator[tuple[Chunk, Packed]]:
    flying: deque = deque()
    try:
        for chunk in chunks:
            flying.append((chunk, pool.submit(function, chunk) if chunk.records else None))
            while len(flying) > ahead:
                yield _landed(*flying.popleft())
        while flying:
            yield _landed(*flying.popleft())
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; no half-written shard is left, "
            "run the same command again (fewer workers= need less memory)"
        ) from None


def _landed(chunk: Chunk, future: Any) -> tuple[Chunk, Packed]:
    return chunk, future.result() if future else Packed()


def _start() -> None:
    """Ctrl-C is answered by the main process; a worker whose main process is gone would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
