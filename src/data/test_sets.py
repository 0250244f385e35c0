"""Names of the test sets of `conf/benchmark`. The audit checks a split under the name that evaluation looks up."""

from functools import cache
from typing import Any

import yaml

from src.runtime import paths

FOLDER = paths.CONF / "benchmark"


@cache
def benchmark_configs() -> dict[str, dict[str, Any]]:
    """The files of conf/benchmark by name. A file with a `layout` is a classification set, any other one a split of a source."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}


def benchmark_name(source: str, split: str) -> str:
    """The first file of conf/benchmark for this split, else the source. Benchmarks on the same records are one test set."""
    configs = benchmark_configs().items()
    return next((name for name, config in configs if (config.get("source"), config.get("split")) == (source, split)), source)
