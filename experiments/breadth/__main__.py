"""`make breadth`: does training on more sources make an encoder that carries over better? Phantoms, two cores, resumable.

python -m experiments.breadth            trains and probes what is missing, then writes results.csv
python -m experiments.breadth workers=1  one trial at a time
"""

import contextlib
import csv
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from experiments.breadth.trials import BENCHMARKS, IMAGE_SOURCES, TEXT_SOURCES, Trial, trials
from experiments.breadth.work import RAW, baseline, quiet, work
from src.runtime.errors import UserError, report_user_errors
from src.runtime.progress import Progress

SHARDS = "data/phantom/shards"
RESULTS = Path("experiments/breadth/results.csv")


@report_user_errors
def main(words: list[str]) -> None:
    workers = int(words[0].removeprefix("workers=")) if words else 2
    if not all((Path(SHARDS) / source / "manifest.json").exists() for source in (*IMAGE_SOURCES, *TEXT_SOURCES)):
        raise UserError(f"{SHARDS} lacks a source of the mini mix; run make mini first, which builds it and the weights to start from")
    prepare("data_prep.phantom", f"sources={','.join(BENCHMARKS)}", f"out={RAW}")
    prepare("data_prep.audit", f"out={SHARDS}", f"raw={RAW}")  # what stands in a benchmark is left out of every trial
    log = Path("outputs/breadth/log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), quiet, (str(log),)) as pool:
        waiting = [pool.submit(baseline), *(pool.submit(work, trial) for trial in trials())]
        for done in Progress(as_completed(waiting), total=len(waiting), desc="breadth", unit="trial"):
            done.result()
    write(RESULTS)
    print(f"{RESULTS}; make experiments renders the table and the plot from it")


def prepare(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True)


def write(path: Path, outputs: str = "outputs") -> None:
    """One row per trial: macro-F1 of the linear probe on each benchmark, and their mean."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "sources", "text", "names", *BENCHMARKS, "mean", "data", "git"])
        for trial in (None, *trials()):
            result = json.loads((Path(outputs) / (trial.name if trial else "breadth/start") / "result.json").read_text())
            scores = {key.split("/")[1]: one["value"] for key, one in result["metrics"].items() if key.endswith("/probe/macro_f1")}
            values = [scores[benchmark] for benchmark in BENCHMARKS]
            values.append(sum(values) / len(values))
            writer.writerow([*about(trial), *(f"{value:.4f}" for value in values), result["data"] or "", result["git"]])


def about(trial: Trial | None) -> list:
    """Seed, number of sources, whether with text-only ones, and their names; of the encoder that all start from: no source."""
    if trial is None:
        return ["", 0, "no", ""]
    return [trial.seed, len(trial.sources), "yes" if trial.text else "no", " ".join(trial.sources)]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
