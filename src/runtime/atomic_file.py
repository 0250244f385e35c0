"""Files that exist under their final name only when they are complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import IO

from src.runtime.errors import DISK_FULL_ERRNOS, UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; the file is fsynced and renamed to `path` on success, and removed on failure.

    The temporary name is fixed, so a later process overwrites what a killed one left behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # without it, a power failure may leave an empty file under the final name
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """`atomic_path` opened as a binary file; creates the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_atomically(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@contextmanager
def explain_full_disk(source: str, folder: Path) -> Iterator[None]:
    """Turns an `OSError` while `source` is written to `folder` into a `UserError`; a full disk gets advice."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise UserError(
                f"no space is left for {folder} or for temporary files in {gettempdir()} ({error.strerror}); free some and run the same "
                "command again, what is finished is kept"
            ) from None
        reason = f"{error.filename} cannot be used ({error.strerror}); correct it" if error.filename and error.strerror else f"{error}"
        raise UserError(f"source '{source}': {reason}") from None
