"""Tars in a cache on the local disk that several processes share: locks, marks of use, removal of the least recently used."""

import os
from pathlib import Path

from src.runtime.file_lock import file_lock


def open_cached(path: Path, size: int) -> int:
    """Descriptor of a cached tar. Raises FileNotFoundError also for a truncated one."""
    descriptor = os.open(path, os.O_RDONLY)
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise FileNotFoundError(path)
    os.utime(descriptor)  # as `mark_as_used`
    return descriptor


def mark_as_used(path: Path) -> bool:
    """False if there is no such file."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def make_room(folder: str | Path, size: int, *, limit: float) -> None:
    """Removes the least recently used tars until `size` more bytes fit into `limit`. A process that has one open can read on."""
    root = Path(folder)
    with file_lock(root / "room"):
        tars = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in root.glob("*/*.tar"))
        excess = sum(tar_size for _, tar_size, _ in tars) + size - limit
        for _, tar_size, path in tars:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= tar_size
