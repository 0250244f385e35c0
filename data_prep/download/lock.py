"""`RAW/sources.lock.yaml`: the revision and the checksums that the first download found, which later ones hold."""

from pathlib import Path
from typing import Any

import yaml

from src.runtime.atomic_file import atomic_file

NAME = "sources.lock.yaml"


def read_lock(raw: Path) -> dict[str, Any]:
    """Source -> `{revision, files: {path: checksum}}`."""
    path = raw / NAME
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def write_lock(raw: Path, held: dict[str, Any]) -> None:
    with atomic_file(raw / NAME) as file:
        file.write(yaml.safe_dump(held, sort_keys=True).encode())
