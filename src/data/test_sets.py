"""Which test sets there are: the name under which the audit checks a split, and evaluation looks it up."""

from functools import cache
from typing import Any

import yaml

from src.runtime import paths

FOLDER = paths.CONF / "benchmark"


@cache
def described() -> dict[str, dict[str, Any]]:
    """The files of conf/benchmark by name. A file with a `layout` is a set of images to classify, any other a split of a source."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}


def set_name(source: str, split: str) -> str:
    """The first file of conf/benchmark on this split, else the source: benchmarks on the same records are one test set."""
    return next((name for name, one in described().items() if (one.get("source"), one.get("split")) == (source, split)), source)
