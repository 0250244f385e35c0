"""The contents of a run folder: configuration, log, results of the commands, predictions."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import yaml

from src.data import lineage
from src.data.credentialed import credentialed_notice
from src.data.record import phantom_notice
from src.evaluation import predictions_file
from src.reporting.blocks import Interval
from src.runtime.errors import UserError, suggest
from src.runtime.run_folder import COMMANDS, flatten

Scores = dict[str, dict[str, dict[str, dict]]]  # [condition][slice][score] -> metric


@dataclass(frozen=True)
class RunData:
    """Reads a run folder. Missing files read as empty, so that an unfinished run can be reported."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict:
        path = self.folder / "config.yaml"
        return yaml.safe_load(path.read_text()) if path.exists() else {}

    @cached_property
    def flat_config(self) -> dict:
        return flatten(self.config)

    @cached_property
    def results(self) -> dict[str, dict]:
        """The result file of each finished command, in the order in which commands are run."""
        paths = {command: self.folder / f"{command}.json" for command in COMMANDS}
        return {command: json.loads(path.read_text()) for command, path in paths.items() if path.exists()}

    @cached_property
    def unfinished_commands(self) -> list[str]:
        """Commands that were started and have not ended."""
        return [command for command in COMMANDS if (self.folder / f"{command}.partial.json").exists()]

    @property
    def is_training_unfinished(self) -> bool:
        return "train" not in self.results and bool(self.config.get("optim"))

    @property
    def data_fingerprint(self) -> str:
        return self.results.get("train", {}).get("data", "")

    @cached_property
    def credentialed(self) -> list[str]:
        """The credentialed sources that the run and the runs that it continued were trained on."""
        return lineage.credentialed(lineage.lineage(self.folder)) if "mix" in self.config else []

    @cached_property
    def metrics(self) -> dict[str, dict]:
        return {key: metric for result in self.results.values() for key, metric in result["metrics"].items()}

    @cached_property
    def log(self) -> list[dict[str, float]]:
        """Rows of `log.csv`; empty cells are left out."""
        path = self.folder / "log.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def column(self, name: str, *, over: str = "step") -> list[tuple[float, float]]:
        return [(row[over], row[name]) for row in self.log if name in row and over in row]

    def predictions(self, benchmark: str, condition: str) -> list[dict]:
        """The answers that the last evaluation scored. The file may hold more: those of an earlier evaluation of more questions."""
        count = self.results.get("evaluate", {}).get("asked", {}).get(benchmark)
        return predictions_file.read_predictions(self.folder / "predictions" / f"{benchmark}.{condition}.jsonl")[:count]

    @property
    def condition(self) -> str:
        """The image condition of the run's main scores: real images, or none for a run that was trained without images."""
        return "real" if self.config.get("data", {}).get("images", True) else "none"

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks with predictions under `condition`."""
        suffix = f".{self.condition}.jsonl"
        return sorted(path.name.removesuffix(suffix) for path in (self.folder / "predictions").glob(f"*{suffix}"))

    @property
    def image_benchmarks(self) -> list[str]:
        """The benchmarks with predictions on their own images."""
        return self.benchmarks if self.condition == "real" else []

    @property
    def seconds(self) -> float:
        return sum(result["seconds"] for result in self.results.values())

    @property
    def peak_rss_mb(self) -> float:
        return max((result["peak_rss_mb"] for result in self.results.values()), default=0.0)


@overload
def interval(metric: dict, *, signed: bool = False) -> Interval: ...


@overload
def interval(metric: dict | None, *, signed: bool = False) -> Interval | None: ...


def interval(metric: dict | None, *, signed: bool = False) -> Interval | None:
    return None if metric is None else Interval(metric["value"], metric["low"], metric["high"], signed)


def scores_by_benchmark(metrics: dict[str, dict]) -> dict[str, Scores]:
    """Turns the keys `vqa/<benchmark>/<condition>/<slice>/<score>` into nested dicts, with `pooled` first."""
    benchmarks: dict[str, Scores] = {}
    for key, metric in metrics.items():
        if key.startswith("vqa/"):
            _, benchmark, condition, part, score = key.split("/")
            benchmarks.setdefault(benchmark, {}).setdefault(condition, {}).setdefault(part, {})[score] = metric
    return dict(sorted(benchmarks.items(), key=lambda item: item[0] != "pooled"))


def phantom_sources(*runs: RunData) -> str:
    """A sentence that names the sources and classification sets that a program generated; empty if there are none."""
    notice = phantom_notice(sorted({name for run in runs for result in run.results.values() for name in result.get("phantoms", [])}))
    return notice and f" {notice}"


def credentialed_sources(*runs: RunData) -> str:
    """A sentence that names the credentialed sources and what follows from them; empty if there are none."""
    encoders = {name for run in runs for name in run.results.get("transfer", {}).get("credentialed", [])}
    notice = credentialed_notice(sorted(encoders.union(*(run.credentialed for run in runs))))
    return notice and f" {notice}"


def find_runs(patterns: str | list[str], outputs: str | Path) -> list[RunData]:
    """Resolves `runs=`: a name, a glob, or a list of these. Each run is returned once, in the order given; a glob is sorted.

    Raises `UserError` if a name or a glob matches no run.
    """
    outputs = Path(outputs)
    patterns = [str(pattern) for pattern in patterns if pattern] if isinstance(patterns, list) else [str(patterns)] if patterns else []
    runs: dict[str, RunData] = {}
    for pattern in patterns:
        literal = outputs / pattern  # names of sweep trials may contain brackets, which a glob would interpret
        folders = [literal] if _is_run(literal) else sorted(path for path in outputs.glob(pattern.strip("/")) if _is_run(path))
        if not folders:
            known = sorted(str(path.parent.relative_to(outputs)) for path in outputs.glob("**/config.yaml"))
            hint = suggest(pattern, known, these="it holds") if known else "; it holds no runs yet"
            raise UserError(f"runs={pattern} matches no run in {outputs}/{hint}")
        runs |= {name: RunData(name, path) for path in folders for name in [str(path.relative_to(outputs))]}
    if not runs:
        raise UserError("runs= names no run; give the name of a run, a list [a,b] or a glob such as sweep/*")
    return list(runs.values())


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or any((folder / f"{command}.json").exists() for command in COMMANDS)
