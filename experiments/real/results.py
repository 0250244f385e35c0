"""CSV files of experiments/real from the run folders, and their tables for the README."""

import csv
import json
from pathlib import Path
from statistics import fmean

from experiments.real.trials import Trial
from experiments.transfer import table as transfer_table
from src.evaluation.baselines import BASELINES
from src.evaluation.benchmark import CONDITIONS
from src.evaluation.summary import REFERENCE_CONDITIONS
from src.metrics.statistics import holm
from src.reporting import groups
from src.reporting.groups import Group
from src.reporting.run_data import RunData

CELLS = "cells"  # run folder of the transfer
SCORES = ("exact", "bleu1", "f1")
SLICES = ("all", "open", "closed", "unseen", "seen")  # the last two by the contamination audit
RESAMPLES, SEED = 10_000, 0
ORIGIN = ("seeds", "data", "git")
RESULT_COLUMNS = ("benchmark", "trial", "condition", "slice", "score", "value", "low", "high", "n", "p_holm", *ORIGIN)
SCORER_COLUMNS = ("benchmark", "trial", "scorer", "value", *ORIGIN)
TRIAL_COLUMNS = ("trial", "seed", "settings", "samples", "train_hours", "evaluate_hours", "peak_gb", "commit_of_training", "data", "git")
CELL_COLUMNS = ("benchmark", "encoder", "protocol", "score", "value", "low", "high", "n", "p_holm", "pooling", "unseen", "git")


def write(out: Path, trials: list[Trial], tables: Path) -> None:
    """Writes results.csv, scorers.csv and trials.csv of trials that are trained and evaluated."""
    experiment = trials[0].experiment
    by_label: dict[str, Group] = {}
    for trial in trials:
        by_label.setdefault(trial.label, Group(trial.label, [])).runs.append(RunData(trial.name, out / trial.name))
    baseline = next((group for group in by_label.values() if group.condition == "real"), None)
    rows = [] if baseline is None else baseline_rows(baseline, experiment.benchmarks)
    rows += [row for group in by_label.values() for row in group_rows(group, experiment.benchmarks)]
    pairs = [(by_label[left], by_label[right]) for left, right in experiment.comparisons if left in by_label and right in by_label]
    rows += [row for name in experiment.benchmarks for row in comparison_rows(name, pairs)]
    write_csv(tables / "results.csv", RESULT_COLUMNS, sorted(rows, key=lambda row: experiment.benchmarks.index(row["benchmark"])))
    scorers = [row for name in experiment.benchmarks for group in by_label.values() for row in scorer_rows(name, group)]
    write_csv(tables / "scorers.csv", SCORER_COLUMNS, scorers)
    write_csv(tables / "trials.csv", TRIAL_COLUMNS, [trial_row(trial, RunData(trial.name, out / trial.name)) for trial in trials])


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)


def origin(group: Group) -> dict:
    run = group.runs[0]
    return {"seeds": len(group.runs), "data": run.data_fingerprint, "git": run.results["evaluate"]["git"]}


def baseline_rows(group: Group, benchmarks: list[str]) -> list[dict]:
    """The scores of the answers that need no model, which are the same for every trial."""
    rows = [row for name in benchmarks for condition in BASELINES for row in metric_rows(group, name, condition, slices=("all",))]
    return [row | {"trial": "no model"} for row in rows]


def group_rows(group: Group, benchmarks: list[str]) -> list[dict]:
    """Scores under each image condition and paired differences to the correct images; slices for the main condition only."""
    conditions = [*CONDITIONS, *(f"real_minus_{other}" for other in REFERENCE_CONDITIONS)]
    return [
        row
        for name in benchmarks
        for condition in conditions
        for row in metric_rows(group, name, condition, slices=SLICES if condition == group.condition else ("all",))
    ]


def metric_rows(group: Group, benchmark: str, condition: str, *, slices: tuple[str, ...]) -> list[dict]:
    """Rows of the metrics that the group has; over several seeds the mean with Student's t interval, as in the report."""
    rows = []
    for part in slices:
        for score in SCORES:
            key = f"vqa/{benchmark}/{condition}/{part}/{score}"
            interval = groups.score(group, key, signed="_minus_" in condition)
            if interval is not None:
                metric = next(run.metrics[key] for run in group.runs if key in run.metrics)
                place = {"benchmark": benchmark, "trial": group.label, "condition": condition, "slice": part, "score": score}
                values = {"value": interval.value, "low": interval.low, "high": interval.high, "n": metric["n"]}
                p = metric.get("p_holm", "") if len(group.runs) == 1 else ""
                rows.append(place | values | {"p_holm": p} | origin(group))
    return rows


def comparison_rows(benchmark: str, pairs: list[tuple[Group, Group]]) -> list[dict]:
    """Differences between trials on the same questions. For each score, p is corrected by Holm over the pairs."""
    rows = []
    for score in SCORES:
        family = []
        for left, right in pairs:
            metric = groups.difference(left, right, benchmarks=[benchmark], scorer=score, resamples=RESAMPLES, seed=SEED)
            if metric:
                place = {"benchmark": benchmark, "trial": f"{left.label} - {right.label}", "condition": "", "slice": "all", "score": score}
                family.append(place | metric | {"data": origin(left)["data"], "git": origin(left)["git"]})
        adjusted = holm([row["p"] for row in family]) if family else []
        rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return rows


def scorer_rows(benchmark: str, group: Group) -> list[dict]:
    """Every scorer on the answers under the main condition, mean over seeds; without those that no question fits."""
    tables = [run.results["evaluate"]["scorers"][benchmark] for run in group.runs]
    common = {"benchmark": benchmark, "trial": group.label} | origin(group)
    return [
        common | {"scorer": scorer, "value": fmean(table[scorer] for table in tables)}
        for scorer in tables[0]
        if all(table[scorer] is not None for table in tables)
    ]


def trial_row(trial: Trial, run: RunData) -> dict:
    trained, evaluated = run.results["train"], run.results["evaluate"]
    return {
        "trial": trial.label,
        "seed": trial.seed,
        "settings": " ".join([*trial.settings.settings, *(["random encoder"] if trial.settings.encoder == "random" else [])]),
        "samples": run.config["optim"]["steps"] * run.config["data"]["global_batch_size"],
        "train_hours": trained["seconds"] / 3600,
        "evaluate_hours": evaluated["seconds"] / 3600,
        "peak_gb": trained["peak_rss_mb"] / 1000,
        "commit_of_training": trained["git"],
        "data": run.data_fingerprint,
        "git": evaluated["git"],
    }


def has_cells(folder: Path, encoders: list[str]) -> bool:
    path = folder / "transfer.json"
    return path.exists() and set(encoders) <= {cell["name"] for cell in json.loads(path.read_text())["transfer"]["cells"]}


def write_cells(folder: Path, tables: Path) -> None:
    """Writes cells.csv. The encoder before training is named so, because its name is a path."""

    def name(encoder: str) -> str:
        return " - ".join("before training" if one.startswith("hf:") else one.removeprefix("run:") for one in encoder.split(" - "))

    rows = [row for row in transfer_table.rows(folder) if row["score"].startswith(("macro_f1", "balanced_accuracy"))]
    write_csv(tables / "cells.csv", CELL_COLUMNS, [row | {"encoder": name(row["encoder"])} for row in rows])
