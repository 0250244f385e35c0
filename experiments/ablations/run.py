"""`make ablation`: compares short trainings on phantoms, from data generation to the report. Minutes on two cores; resumable.

python -m experiments.ablations.run                  six data mixes: data, weights, training, evaluation, report and CSV table
python -m experiments.ablations.run sweep=recipes    the paper's recipe and ours at equal cost, three seeds
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiments.mini.run import SMALL, STAGES, run_command
from experiments.tables import store_metrics
from src.runtime.arguments import parse_arguments
from src.runtime.cli import compose, expand_experiment_sweep
from src.runtime.errors import report_user_errors
from src.runtime.schema import check_choice
from src.runtime.sweep import common_keys, expand_trials, trial_slug

SEEDS = "seed=0,1,2"
SWEEPS = {  # name: overrides of each `src.train -m`; the first trial is the baseline
    "leave_kind_out": [["+experiment=leave_kind_out"]],
    "recipes": [["+experiment=mini_recommended", SEEDS], ["+experiment=mini_paper", SEEDS]],
}
BENCHMARKS, LIMIT = "pathvqa,vqa_med_2019,slake,vqa_rad", 150
METRICS = [f"vqa/pooled/{condition}/all/bleu1" for condition in ("real", "shuffled", "blank", "real_minus_shuffled", "real_minus_blank")]
METRICS += ["train/fill", "train/samples_per_second"]


@dataclass
class AblationConfig:
    """Compares short trainings on phantoms. To continue an interrupted comparison, run the same command again.

    python -m experiments.ablations.run sweep=recipes

    sweep  leave_kind_out: six data mixes (default); recipes: the paper's recipe and ours, three seeds
    small  true: every stage in a minute or two, without the CSV table (default false)
    """

    sweep: str = "leave_kind_out"
    small: bool = False


@report_user_errors
def main(args: list[str]) -> int:
    config = parse_arguments(AblationConfig, args)
    name, small = config.sweep, config.small
    check_choice("sweep", name, tuple(SWEEPS))
    start = time.perf_counter()
    for command in commands(name, small=small):
        print(f"$ python -m {command}", flush=True)
        code = run_command(command)
        if code:
            print(f"{command.split()[0]}: failed with exit code {code}; run the same command again to continue", file=sys.stderr)
            return code if code > 0 else 128 - code
    print(f"{time.perf_counter() - start:.0f} s; outputs/{name}/report.html")
    if not small:
        table = Path(__file__).with_name(f"{name}.csv")
        store_metrics(Path("outputs") / name / "report.csv", table, METRICS.__contains__)
        print(f"wrote {table.name}; run make experiments to render it in the README")
    return 0


def commands(name: str, *, small: bool = False) -> list[str]:
    """All commands in order. Each of them skips what is complete."""
    extra = SMALL if small else {}
    stages = ("raw data and shards", "language model", "vision stand-in")
    prepare = [f"{command} {extra.get(command.split()[0], '')}".strip() for stage in stages for command in STAGES[stage][1]]
    sweeps = [[*words, *extra.get("src.train", "").split()] for words in SWEEPS[name]]
    runs = [run for words in sweeps for run in run_names(words)]
    limits = extra.get("src.evaluate", f"limit={LIMIT}")
    quoted = ",".join(f'"{run}"' for run in runs)
    evaluate = f"src.evaluate -m benchmarks=[{BENCHMARKS}] images=[real,shuffled,blank] {limits} run={quoted}"
    trains = [f"src.train -m {' '.join(words)}" for words in sweeps]
    return [*prepare, *trains, evaluate, f"src.report runs={name}/** baseline='{runs[0]}'"]


def run_names(words: list[str]) -> list[str]:
    """The name of every trial of a sweep."""
    trials = expand_trials(expand_experiment_sweep("train", words))
    common = common_keys(trials)
    return [f"{compose('train', trial).name}/{trial_slug(trial, common=common)}" for trial in trials]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
