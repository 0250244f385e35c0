"""Whether a raw folder holds what its reader will ask for, fetched or put there by hand."""

from pathlib import Path
from typing import Any

from data_prep.download import lock
from data_prep.download.http import checksum
from data_prep.readers.raw_files import rows_in
from data_prep.sources import Source
from src.data.record import SPLITS
from src.runtime.errors import UserError


def missing_files(entry: Source, folder: Path) -> str:
    """What to do where something that the reader will ask for is not there, fetched or put there by hand; else nothing."""
    absent = [pattern for pattern in entry.also if not any(_filled(path) for path in folder.glob(pattern))]
    if not any(entry.tables(folder, split) for split in SPLITS):
        absent = [globs[0] for globs in entry.files.values()] + absent
    if absent and entry.by_hand:
        pages = ", ".join(entry.pages)
        return f"source '{entry.name}' has to be fetched by hand into {folder}: {entry.steps} ({pages}); not there: {', '.join(absent)}"
    if absent:
        return f"source '{entry.name}': {', '.join(absent)} is not in {folder}; {entry.steps or 'its layout has changed'}"
    print(f"{entry.name}: complete in {folder}")
    without = [split for split in entry.expected if not entry.tables(folder, split)]
    if without:
        print(f"{entry.name}: no file for {', '.join(without)}; {entry.steps}")
    return ""


def _filled(path: Path) -> bool:
    return path.is_file() or any(path.iterdir())


def lock_tables(entry: Source, raw: Path, held: dict[str, Any]) -> None:
    """What was put there by hand: its tables are counted, and held from now on."""
    files: dict[str, str] = held.setdefault(entry.name, {"revision": "", "files": {}})["files"]
    for split in SPLITS:
        for path in entry.tables(raw / entry.name, split):
            name, found = str(path.relative_to(raw / entry.name)), checksum(path)
            if files.setdefault(name, found) != found:
                was = f"{raw / lock.NAME} holds {files[name]}"
                raise UserError(f"{path} is {found} now, and {was}; remove the entry there if you want the new file")
            rows, expected = rows_in(path), entry.expected.get(split, "an unknown number")
            said = "is there" if rows is None else f"has about {rows:,} lines"
            print(f"{entry.name}: {name} {said}; rows expected in {split}: {expected}")
    lock.write_lock(raw, held)
