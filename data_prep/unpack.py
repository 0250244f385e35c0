"""A downloaded zip file next to itself, member by member: no name leads out of the folder, nothing is written twice."""

import shutil
import zipfile
from pathlib import Path

from src.errors import UserError


def unpack(archive: Path, folder: Path) -> None:
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
                _write(file, member, folder / member.filename)
    except (zipfile.BadZipFile, EOFError, zipfile.LargeZipFile) as error:
        raise UserError(f"{archive} is not a complete zip file ({error}); remove it and run the same command again") from None


def _check_name(archive: Path, name: str) -> None:
    if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name:
        raise UserError(f"{archive.name} holds a member that leads out of its folder ('{name}'); it is not unpacked")


def _there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with file.open(member) as source, part.open("wb") as out:
        shutil.copyfileobj(source, out)
    part.replace(target)
