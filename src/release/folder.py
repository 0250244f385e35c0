"""A folder that appears whole or not at all, and that a second, equal export leaves as it is."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from src.runtime.errors import UserError

SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Gives a folder to write into; at the end it becomes `out`, or is dropped where `out` has the same bytes already.

    Raises `UserError` where `out` holds something else: what was handed on is not changed under its users.
    """
    if out.exists() and not (out / SUMS).is_file():
        raise UserError(f"out={out} exists and was not written by export; choose another out=")
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        (partial / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(file_digests(partial).items())))
        if out.exists():
            _must_equal(out, partial)
        else:
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 by path relative to the folder, of every file but the list of sums."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS]
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _must_equal(out: Path, partial: Path) -> None:
    there, new = file_digests(out), file_digests(partial)
    different = sorted(name for name in there.keys() | new.keys() if there.get(name) != new.get(name))
    if different:
        some = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise UserError(f"out={out} exists and differs from this export in {some}; remove it or choose another out=")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
