"""`make breadth`: does training on more sources give an encoder that transfers better? Phantoms, two cores, resumable.

python -m experiments.breadth            runs the missing trials, then writes results.csv
python -m experiments.breadth workers=1  runs one trial at a time
"""

import contextlib
import csv
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from experiments.breadth.trials import BENCHMARKS, IMAGE_SOURCES, TEXT_SOURCES, Trial, trials
from experiments.breadth.work import RAW, redirect_output, run_baseline, run_trial
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors
from src.runtime.progress import Progress

SHARDS = "data/phantom/shards"
RESULTS = Path("experiments/breadth/results.csv")


@dataclass
class BreadthConfig:
    """Runs the missing trials, then writes results.csv.

    python -m experiments.breadth workers=1

    workers  trials that run at the same time (default 2)
    """

    workers: int = 2


@report_user_errors
def main(args: list[str]) -> None:
    workers = parse_arguments(BreadthConfig, args).workers
    if not all((Path(SHARDS) / source / "manifest.json").exists() for source in (*IMAGE_SOURCES, *TEXT_SOURCES)):
        raise UserError(f"{SHARDS}: a source of the mini mix is missing; run make mini first, which builds it and the initial weights")
    run_module("data_prep.phantom", f"sources={','.join(BENCHMARKS)}", f"out={RAW}")
    run_module("data_prep.audit", f"out={SHARDS}", f"raw={RAW}")  # images of a benchmark are left out of every trial
    log = Path("outputs/breadth/log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), redirect_output, (str(log),)) as pool:
        futures = [pool.submit(run_baseline), *(pool.submit(run_trial, trial) for trial in trials())]
        for future in Progress(as_completed(futures), total=len(futures), desc="breadth", unit="trial"):
            future.result()
    write(RESULTS)
    print(f"wrote {RESULTS}; run make experiments to render the table and the plot")


def run_module(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True)


def write(path: Path, outputs: str = "outputs") -> None:
    """Writes one row per trial: macro-F1 of the linear probe on each benchmark, and their mean."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "sources", "text", "names", *BENCHMARKS, "mean", "data", "git"])
        for trial in (None, *trials()):
            result = json.loads((Path(outputs) / (trial.name if trial else "breadth/start") / "result.json").read_text())
            scores = {key.split("/")[1]: metric["value"] for key, metric in result["metrics"].items() if key.endswith("/probe/macro_f1")}
            values = [scores[benchmark] for benchmark in BENCHMARKS]
            values.append(sum(values) / len(values))
            writer.writerow([*trial_columns(trial), *(f"{value:.4f}" for value in values), result["data"] or "", result["git"]])


def trial_columns(trial: Trial | None) -> list:
    """Seed, number of sources, use of text-only sources, and names of the sources. None is the initial encoder without training."""
    if trial is None:
        return ["", 0, "no", ""]
    return [trial.seed, len(trial.sources), "yes" if trial.text else "no", " ".join(trial.sources)]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
