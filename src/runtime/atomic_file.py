"""Files that exist under their final name only when they are complete."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import IO

from src.runtime.errors import UserError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room for a file, or none for one of this size


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; fsynced and renamed to `path` on success, removed on failure.

    The temporary name is fixed, so what a killed process leaves is overwritten by its successor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def explain_full_disk(source: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise UserError(
                f"no space is left for {folder} or for temporary files in {gettempdir()} ({error.strerror}); free some and run the same "
                "command again, what is finished is kept"
            ) from None
        raise UserError(f"source '{source}': {error}") from None
