"""The entries of `data_prep/sources.yaml`, for what training, export and transfer say of a source. `src` does not import `data_prep`."""

from functools import cache
from typing import Any

import yaml

from src.runtime import paths

SOURCES_YAML = paths.REPOSITORY / "data_prep" / "sources.yaml"


@cache
def source_entries() -> dict[str, dict[str, Any]]:
    """The entries as plain values by name; empty in an exported Space, which has no such file. YAML reads an unquoted yes as true."""
    return yaml.load(SOURCES_YAML.read_text(), Loader=yaml.CSafeLoader) if SOURCES_YAML.exists() else {}
