"""`make ablation`: compares six data mixes on phantoms, from data generation to the report. Minutes on two cores; resumable.

python -m experiments.ablations.run           data, weights, six short trainings, their evaluation, report and CSV table
python -m experiments.ablations.run small     runs every stage in a minute or two, without the table
"""

import sys
import time
from pathlib import Path

from experiments.mini.run import SMALL, STAGES, run_command
from experiments.tables import store_metrics
from src.runtime.cli import expand_experiment_sweep
from src.runtime.sweep import common_keys, expand_trials, trial_slug

EXPERIMENT = "leave_kind_out"
BENCHMARKS, LIMIT = "pathvqa,vqa_med_2019,slake,vqa_rad", 150
TABLE = Path(__file__).with_name(f"{EXPERIMENT}.csv")
METRICS = [f"vqa/pooled/{condition}/all/bleu1" for condition in ("real", "shuffled", "blank", "real_minus_shuffled", "real_minus_blank")]
METRICS += ["train/fill", "train/samples_per_second"]


def main(words: list[str]) -> int:
    small = words == ["small"]
    start = time.perf_counter()
    for command in commands(small=small):
        print(f"$ python -m {command}", flush=True)
        code = run_command(command)
        if code:
            print(f"{command.split()[0]}: failed with exit code {code}; run the same command again to continue", file=sys.stderr)
            return code if code > 0 else 128 - code
    print(f"{time.perf_counter() - start:.0f} s; outputs/{EXPERIMENT}/report.html")
    if not small:
        store_metrics(Path("outputs") / EXPERIMENT / "report.csv", TABLE, METRICS.__contains__)
        print(f"wrote {TABLE.name}; run make experiments to render it in the README")
    return 0


def commands(*, small: bool = False) -> list[str]:
    """All commands in order. Each of them skips what is complete."""
    extra = SMALL if small else {}
    stages = ("raw data and shards", "language model", "vision stand-in")
    prepare = [f"{command} {extra.get(command.split()[0], '')}".strip() for stage in stages for command in STAGES[stage][1]]
    words = [f"+experiment={EXPERIMENT}", *extra.get("src.train", "").split()]
    trials = expand_trials(expand_experiment_sweep("train", words))
    names = [f"{EXPERIMENT}/{trial_slug(trial, common=common_keys(trials))}" for trial in trials]
    limits = extra.get("src.evaluate", f"limit={LIMIT}")
    runs = ",".join(f'"{name}"' for name in names)
    evaluate = f"src.evaluate -m benchmarks=[{BENCHMARKS}] images=[real,shuffled,blank] {limits} run={runs}"
    return [*prepare, f"src.train -m {' '.join(words)}", evaluate, f"src.report runs={EXPERIMENT}/* baseline='{names[0]}'"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
