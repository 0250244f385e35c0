"""Unpacks a downloaded archive into a folder. Member names that lead out of the folder are rejected; complete files are skipped."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from src.runtime.errors import UserError
from src.runtime.progress import Progress


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpacks a zip file. Members that already exist in full are skipped, so an interrupted run is resumed.

    Raises `UserError` if a member name leads out of the folder or the disk has too little space (both before anything is
    written), or if the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.is_dir()]
            for member in members:
                _check_name(archive, member.filename)
            missing = [member for member in members if not _is_complete(folder / member.filename, member.file_size)]
            needed, free = sum(member.file_size for member in missing), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{archive}: unpacking needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free; free some space")
            for member in missing:
                with file.open(member) as content:
                    _write(content, folder / member.filename)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:  # the last two: unsupported or encrypted
        raise UserError(f"{archive}: damaged or unsupported zip file ({error}); remove it and run the same command again") from None


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpacks a `.tar.gz` file like `unpack_zip`. Links and devices are skipped.

    A tar file has no directory, so names are checked one by one while it is read. A marker file next to a completely unpacked
    archive saves later runs from reading it again.
    """
    marker = archive.with_name(archive.name + ".unpacked")
    if marker.exists():
        return
    num_skipped = 0
    try:
        with (
            archive.open("rb") as raw,
            Progress.wrapattr(raw, "read", total=archive.stat().st_size, desc=archive.name) as compressed,
            gzip.open(compressed) as plain,
            tarfile.open(fileobj=plain, mode="r|") as file,
        ):
            for member in file:
                _check_name(archive, member.name)
                content = file.extractfile(member) if member.isreg() else None
                num_skipped += not (content or member.isdir())
                if content and not _is_complete(folder / member.name, member.size):
                    _write(content, folder / member.name)
                file.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members in memory
            while plain.read(1 << 20):  # to the end, where gzip verifies its checksum
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{archive}: truncated or damaged tar.gz file ({error}); download it again and run the same command again"
        ) from None
    if num_skipped:
        print(f"{archive.name}: skipped {num_skipped:,} members that are neither files nor folders")
    marker.touch()


def _check_name(archive: Path, name: str) -> None:
    if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name:
        raise UserError(f"{archive}: the member '{name}' leads out of the folder; the archive is not unpacked, download it again")


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        shutil.copyfileobj(content, file)
    part.replace(target)
