"""Maps a function over chunks in worker processes and returns the results in order.

Image bytes travel through files in shared memory. For an image of 118 kB the pipe of the pool takes 0.2 ms, a tenth of the
time to encode it; a file takes 0.05 ms (measured).
"""

import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.build.chunking import Chunk
from data_prep.build.serialize import SerializedChunk
from src.runtime.errors import UserError

Serialize = Callable[[Chunk], SerializedChunk]
Map = Callable[[Serialize, Iterable[Chunk]], Iterator[tuple[Chunk, SerializedChunk]]]
SHARED_MEMORY = Path("/dev/shm")  # files in memory on Linux
MIN_FREE_BYTES = 2 << 30  # below this, as in many containers, files go to the temporary folder


@contextmanager
def process_map(workers: int) -> Iterator[Map]:
    """Yields `map(serialize, chunks)` over that many processes; with `workers=1` it runs in this process.

    At most two chunks per worker are in flight, which bounds the memory. Raises `UserError` if a worker is killed.
    """
    if workers == 1:
        yield lambda serialize, chunks: ((chunk, serialize(chunk)) for chunk in chunks)
        return
    in_memory = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > MIN_FREE_BYTES
    with TemporaryDirectory(prefix="openmedq-", dir=SHARED_MEMORY if in_memory else None) as folder:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=_initialize_worker, initargs=(folder,))
        slots = [Path(folder, str(slot)) for slot in range(2 * workers)]
        try:
            yield lambda serialize, chunks: _map_in_order(pool, serialize, chunks, deque(slots))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _map_in_order(
    pool: ProcessPoolExecutor, serialize: Serialize, chunks: Iterable[Chunk], free_slots: deque[Path]
) -> Iterator[tuple[Chunk, SerializedChunk]]:
    in_flight: deque[tuple[Chunk, Path, Future[SerializedChunk]]] = deque()
    try:
        for chunk in chunks:
            if not free_slots:
                yield _collect(*in_flight[0])
                free_slots.append(in_flight.popleft()[1])
            slot = free_slots.popleft()
            in_flight.append((replace(chunk, records=[]), slot, _submit(pool, serialize, chunk, slot)))
        while in_flight:
            yield _collect(*in_flight.popleft())
    except BrokenProcessPool:
        raise UserError(
            "workers=: a worker process was killed, most likely because memory ran out; run the same command again to continue, "
            "with fewer workers= to use less memory"
        ) from None


def _submit(pool: ProcessPoolExecutor, serialize: Serialize, chunk: Chunk, slot: Path) -> "Future[SerializedChunk]":
    slot.write_bytes(b"".join(image for record in chunk.records for image in record.images))
    sizes = [[len(image) for image in record.images] for record in chunk.records]
    return pool.submit(_run, serialize, replace(chunk, records=[replace(record, images=[]) for record in chunk.records]), sizes, slot)


def _run(serialize: Serialize, chunk: Chunk, sizes: list[list[int]], slot: Path) -> SerializedChunk:
    """Runs in a worker: reads the images from the slot, and replaces them there by the serialised bytes."""
    data, offset = slot.read_bytes(), 0
    for record, lengths in zip(chunk.records, sizes, strict=True):
        for length in lengths:
            record.images.append(data[offset : offset + length])
            offset += length
    serialized = serialize(chunk)
    slot.write_bytes(serialized.data)
    return replace(serialized, data=b"")


def _collect(chunk: Chunk, slot: Path, future: "Future[SerializedChunk]") -> tuple[Chunk, SerializedChunk]:
    serialized = future.result()
    return chunk, replace(serialized, data=slot.read_bytes())


def _initialize_worker(folder: str) -> None:
    """Leaves Ctrl-C to the main process. If the main process dies, the worker removes the shared files and exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
