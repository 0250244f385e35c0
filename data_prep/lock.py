"""`RAW/sources.lock.yaml`: the revision and the checksums that the first download found, which later ones hold."""

from pathlib import Path
from typing import Any

import yaml

from data_prep.atomic import atomic

NAME = "sources.lock.yaml"


def read(raw: Path) -> dict[str, Any]:
    """Source -> `{revision, files: {path: checksum}}`."""
    path = raw / NAME
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def write(raw: Path, held: dict[str, Any]) -> None:
    with atomic(raw / NAME) as file:
        file.write(yaml.safe_dump(held, sort_keys=True).encode())
