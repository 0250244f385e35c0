"""`make ablation`: from nothing to the comparison of six data mixes on phantoms, in minutes on two cores; resumable.

python -m experiments.ablations.run           data, weights, six short trainings, their answers, the comparison, the table
python -m experiments.ablations.run small     tries every stage in a minute or two; no table
"""

import sys
import time
from pathlib import Path

from experiments.mini.run import SMALL, STAGES, run_command
from experiments.tables import keep
from src.runtime.cli import expand_experiment_sweep
from src.runtime.sweep import expand_trials, trial_slug

EXPERIMENT = "leave_kind_out"
BENCHMARKS, LIMIT = "pathvqa,vqa_med_2019,slake,vqa_rad", 150
TABLE = Path(__file__).with_name(f"{EXPERIMENT}.csv")
KEPT = [f"vqa/pooled/{condition}/all/bleu1" for condition in ("real", "shuffled", "blank", "real_minus_shuffled", "real_minus_blank")]
KEPT += ["train/fill", "train/samples_per_second"]


def main(words: list[str]) -> int:
    small = words == ["small"]
    begun = time.perf_counter()
    for command in commands(small=small):
        print(f"$ python -m {command}", flush=True)
        code = run_command(command)
        if code:
            print(f"stopped in '{command.split()[0]}' (exit code {code}); the same command continues", file=sys.stderr)
            return code if code > 0 else 128 - code
    print(f"{time.perf_counter() - begun:.0f} s; outputs/{EXPERIMENT}/report.html")
    if not small:
        keep(Path("outputs") / EXPERIMENT / "report.csv", TABLE, KEPT.__contains__)
        print(f"{TABLE.name} is stored; make experiments puts it into the README")
    return 0


def commands(*, small: bool = False) -> list[str]:
    """In their order; what is complete is not done again."""
    made = [command for stage in ("raw data and shards", "language model", "vision stand-in") for command in STAGES[stage][1]]
    shorter = SMALL if small else {}
    made = [f"{command} {shorter.get(command.split()[0], '')}".strip() for command in made]
    words = [f"+experiment={EXPERIMENT}", *shorter.get("src.train", "").split()]
    names = [f"{EXPERIMENT}/{trial_slug(trial)}" for trial in expand_trials(expand_experiment_sweep("train", words))]
    asked = shorter.get("src.evaluate", f"limit={LIMIT}")
    runs = ",".join(f'"{name}"' for name in names)
    answered = f"src.evaluate -m benchmarks=[{BENCHMARKS}] images=[real,shuffled,blank] {asked} run={runs}"
    return [*made, f"src.train -m {' '.join(words)}", answered, f"src.report runs={EXPERIMENT}/* baseline='{names[0]}'"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
