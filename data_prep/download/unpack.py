"""A downloaded archive next to itself, member by member: no name leads out of the folder, nothing is written twice."""

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
    """Members that are there in full are left alone, so an interrupted run goes on. Raises `UserError` before the first byte
    where a name is not inside the folder, the archive is damaged, or the disk has no room."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.is_dir()]
            for member in members:
                _check_name(archive, member.filename)
            missing = [member for member in members if not _there(folder / member.filename, member.file_size)]
            needed, free = sum(member.file_size for member in missing), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{archive.name} unpacks to {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB; make room")
            for member in missing:
                with file.open(member) as content:
                    _write(content, folder / member.filename)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:  # the last two: packed or locked oddly
        raise UserError(
            f"{archive} is not a zip file that can be read to its end ({error}); remove it and run the same command again"
        ) from None


def unpack_tar(archive: Path, folder: Path) -> None:
    """The same of a `.tar.gz`, which has no directory: names are checked as they come, and a mark beside an archive that was read to
    its end spares the next run to read it again. Of what is neither file nor folder (links, devices) nothing is made."""
    done = archive.with_name(archive.name + ".unpacked")
    if done.exists():
        return
    others = 0
    try:
        with (
            archive.open("rb") as raw,
            Progress.wrapattr(raw, "read", total=archive.stat().st_size, desc=archive.name) as packed,
            gzip.open(packed) as plain,
            tarfile.open(fileobj=plain, mode="r|") as file,
        ):
            for member in file:
                _check_name(archive, member.name)
                content = file.extractfile(member) if member.isreg() else None
                others += not (content or member.isdir())
                if content and not _there(folder / member.name, member.size):
                    _write(content, folder / member.name)
                file.members.clear()  # type: ignore[attr-defined]  # or all would stay in memory
            while plain.read(1 << 20):  # to its checksum
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{archive} is not a complete tar.gz file ({error}); fetch it again and run the same command again") from None
    if others:
        print(f"{archive.name}: {others:,} members that are neither files nor folders are left out")
    done.touch()


def _check_name(archive: Path, name: str) -> None:
    if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name:
        raise UserError(f"{archive.name} holds a member that leads out of its folder ('{name}'); it is not unpacked")


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("wb") as out:
        shutil.copyfileobj(content, out)
    part.replace(target)
