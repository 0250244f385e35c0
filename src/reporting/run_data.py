"""A run as it lies on disk: its configuration, its log, what its verbs wrote, its predictions."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import yaml

from src.data.record import phantom_notice
from src.evaluation import predictions_file
from src.reporting.blocks import Interval
from src.runtime.errors import UserError, suggest
from src.runtime.run_folder import COMMANDS, flatten


@dataclass(frozen=True)
class RunData:
    """Reads what is there; whatever a run does not have yet is empty, so that an unfinished run can be shown."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict:
        path = self.folder / "config.yaml"
        return yaml.safe_load(path.read_text()) if path.exists() else {}

    @cached_property
    def flat(self) -> dict:
        return flatten(self.config)

    @cached_property
    def verbs(self) -> dict[str, dict]:
        """What each finished verb wrote, in the order in which verbs are run."""
        found = {name: self.folder / f"{name}.json" for name in COMMANDS}
        return {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}

    @cached_property
    def unfinished(self) -> list[str]:
        """Verbs that were started and have not ended."""
        return [name for name in COMMANDS if (self.folder / f"{name}.partial.json").exists()]

    @cached_property
    def metrics(self) -> dict[str, dict]:
        return {key: value for said in self.verbs.values() for key, value in said["metrics"].items()}

    @cached_property
    def log(self) -> list[dict[str, float]]:
        """Rows of `log.csv`; what a row does not have is absent from it."""
        path = self.folder / "log.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def column(self, name: str, *, over: str = "step") -> list[tuple[float, float]]:
        return [(row[over], row[name]) for row in self.log if name in row and over in row]

    def predictions(self, benchmark: str, condition: str) -> list[dict]:
        """The answers to the questions that the last evaluation asked; the file may hold more behind them."""
        asked = self.verbs.get("evaluate", {}).get("asked", {}).get(benchmark)
        return predictions_file.read_predictions(self.folder / "predictions" / f"{benchmark}.{condition}.jsonl")[:asked]

    @property
    def condition(self) -> str:
        """The image condition that the run is judged by: the question's own image, or none where it was trained without images."""
        return "real" if self.config.get("data", {}).get("images", True) else "none"

    @property
    def answered(self) -> list[str]:
        """The benchmarks that were answered under this condition."""
        ending = f".{self.condition}.jsonl"
        return sorted(path.name.removesuffix(ending) for path in (self.folder / "predictions").glob(f"*{ending}"))

    @property
    def seen(self) -> list[str]:
        """The benchmarks that were answered with their own images."""
        return self.answered if self.condition == "real" else []

    @property
    def seconds(self) -> float:
        return sum(said["seconds"] for said in self.verbs.values())

    @property
    def peak_rss_mb(self) -> float:
        return max((said["peak_rss_mb"] for said in self.verbs.values()), default=0.0)


@overload
def interval(metric: dict, *, signed: bool = False) -> Interval: ...


@overload
def interval(metric: dict | None, *, signed: bool = False) -> Interval | None: ...


def interval(metric: dict | None, *, signed: bool = False) -> Interval | None:
    return None if metric is None else Interval(metric["value"], metric["low"], metric["high"], signed)


def phantom_sources(*runs: RunData) -> str:
    """A sentence on the sources and classification sets that only stand for a dataset; empty where none do."""
    said = phantom_notice(sorted({name for run in runs for verb in run.verbs.values() for name in verb.get("phantoms", [])}))
    return said and f" {said}"


def find_runs(wanted: str | list[str], outputs: str | Path) -> list[RunData]:
    """The runs that `runs=`, a name or a glob or a list of them, stands for, each once, in the order given; a glob is sorted.

    Raises `UserError` for a name or a glob that finds no run.
    """
    outputs = Path(outputs)
    wanted = [str(one) for one in wanted if one] if isinstance(wanted, list) else [str(wanted)] if wanted else []
    runs: dict[str, RunData] = {}
    for pattern in wanted:
        literal = outputs / pattern  # names of trials may hold brackets, which a glob would read
        folders = [literal] if _is_run(literal) else sorted(path for path in outputs.glob(pattern.strip("/")) if _is_run(path))
        if not folders:
            known = sorted(str(path.parent.relative_to(outputs)) for path in outputs.glob("**/config.yaml"))
            there = suggest(pattern, known, these="it holds") if known else ", which holds none yet"
            raise UserError(f"runs={pattern} finds no run in {outputs}/{there}")
        runs |= {name: RunData(name, path) for path in folders for name in [str(path.relative_to(outputs))]}
    if not runs:
        raise UserError("runs= names no run; give a run's name, a list [a,b] or a glob such as sweep/*")
    return list(runs.values())


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or any((folder / f"{name}.json").exists() for name in COMMANDS)
