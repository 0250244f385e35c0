"""`RAW/sources.lock.yaml`: the revisions and checksums of the first download, which later downloads have to match."""

from pathlib import Path
from typing import Any

import yaml

from data_prep.download.http import checksum
from data_prep.readers.raw_files import rows_in
from data_prep.sources import Source
from src.data.record import SPLITS
from src.runtime.atomic_file import atomic_file
from src.runtime.errors import UserError

NAME = "sources.lock.yaml"


def read_lock(raw: Path) -> dict[str, Any]:
    """Source -> `{revision, files: {path: checksum}}`."""
    path = raw / NAME
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def write_lock(raw: Path, locked: dict[str, Any]) -> None:
    with atomic_file(raw / NAME) as file:
        file.write(yaml.safe_dump(locked, sort_keys=True).encode())


def lock_tables(entry: Source, raw: Path, locked: dict[str, Any]) -> None:
    """Prints the rows of tables that were downloaded by hand and locks their checksums.

    Raises `UserError` if a table differs from its locked checksum.
    """
    files: dict[str, str] = locked.setdefault(entry.name, {"revision": "", "files": {}})["files"]
    for split in SPLITS:
        for path in entry.tables(raw / entry.name, split):
            name, digest = str(path.relative_to(raw / entry.name)), checksum(path)
            if files.setdefault(name, digest) != digest:
                raise UserError(
                    f"{path}: has the checksum {digest}, but {raw / NAME} holds {files[name]}; "
                    "remove the entry there if you want to use the new file"
                )
            rows, expected = rows_in(path), entry.expected.get(split, "an unknown number")
            content = "exists" if rows is None else f"has about {rows:,} lines"
            print(f"{entry.name}: {name} {content}; rows expected in {split}: {expected}")
    write_lock(raw, locked)
