"""`python -m experiments.mini.run`: the complete pipeline on phantom data, one or more commands per stage.

Each stage skips what is complete, so the same command continues an interrupted run. The exit code is 1 if the model does not answer
better with the correct image than with another image or a blank one. `small=true` runs every stage in about a minute, for
`experiments.soak.interrupt`.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from src.runtime.arguments import parse_arguments
from src.runtime.errors import report_user_errors
from src.runtime.tables import print_table

MIX = "pmc_oa,mimic_cxr,pubmedqa,medmcqa,pmc_vqa,omnimedvqa,roco,pathvqa,ubench,vqa_med_2019,medqa,iu_xray,slake,vqa_rad"
BENCHMARKS = "pathvqa,vqa_med_2019,vqa_rad,vqa_rad_disjoint,slake,pmc_vqa,medqa,medmcqa,pubmedqa"
STAGES: dict[str, tuple[int, list[str]]] = {  # name: (expected seconds on two cores, commands)
    "raw data and shards": (
        80,
        [
            f"data_prep.phantom sources={MIX},breastmnist,retinamnist out=data/phantom/raw",
            f"data_prep.shards sources={MIX} raw=data/phantom/raw out=data/phantom/shards",
            "data_prep.audit out=data/phantom/shards raw=data/phantom/raw",
        ],
    ),
    "language model": (40, ["data_prep.phantom.weights parts=language out=data/phantom/weights shards=data/phantom/shards"]),
    "vision stand-in": (60, ["data_prep.phantom.weights parts=vision out=data/phantom/weights shards=data/phantom/shards"]),
    "training": (220, ["src.train +experiment=mini"]),
    "evaluation": (100, [f"src.evaluate run=mini benchmarks=[{BENCHMARKS}]"]),
    "transfer": (60, ["src.transfer encoder=[run:mini,scratch:mini] benchmark=[breastmnist,retinamnist] raw=data/phantom/raw"]),
    "report": (20, ["src.report runs=mini"]),
}
SMALL = {  # overrides of `small`: about a minute for all stages; the scores mean nothing
    "data_prep.phantom": "scale=0.05",
    "data_prep.shards": "quarantine_limit=0.2",  # the faulty rows of a phantom are a larger share of few rows
    "data_prep.phantom.weights": "language_steps=4 vision_steps=4",
    # At this scale, the audit marks every training record of vqa_rad, whose official splits share images.
    "src.train": "optim.steps=6 optim.warmup=2 trainer.val_every=2 data.val_samples=4 mix.leave_out=[vqa_rad]",
    "src.evaluate": "limit=12 batch=4 resamples=100",
    "src.transfer": "seeds=1 resamples=100",
}
RESULT = Path("outputs/mini/result.json")


@dataclass
class MiniConfig:
    """Runs the complete pipeline on phantom data. To continue an interrupted run, run the same command again.

    python -m experiments.mini.run

    small  true: every stage in about a minute; the scores mean nothing (default false)
    """

    small: bool = False


@report_user_errors
def main(args: list[str]) -> int:
    small = parse_arguments(MiniConfig, args).small
    seconds: dict[str, float] = {}
    for number, (name, (budget, commands)) in enumerate(STAGES.items(), 1):
        print(f"\n[{number}/{len(STAGES)}] {name} (budget {budget} s)", flush=True)
        start = time.perf_counter()
        for command in commands:
            command = f"{command} {SMALL.get(command.split()[0], '')}".strip() if small else command
            print(f"$ python -m {command}", flush=True)
            code = run_command(command)
            if code:
                print(f"{name}: failed with exit code {code}; run the same command again to continue", file=sys.stderr)
                return code if code > 0 else 128 - code  # as a shell reports a signal
        seconds[name] = time.perf_counter() - start
    result = json.loads(RESULT.read_text())
    show(seconds, result)
    error_text = None if small else check_images_help(result["metrics"])
    if error_text:
        print(f"error: {error_text}", file=sys.stderr)
    return int(bool(error_text))


def run_command(command: str) -> int:
    """The exit code of `python -m <command>`. On Ctrl-C it waits for the command, which also gets the signal and saves its state."""
    process = subprocess.Popen([sys.executable, "-m", *command.split()])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def check_images_help(metrics: dict) -> str | None:
    """An error text if the answers are not significantly better with the correct image; None if they are or a condition is missing."""
    differences = {other: metrics.get(f"vqa/pooled/real_minus_{other}/all/bleu1") for other in ("shuffled", "blank")}
    for other, metric in differences.items() if all(differences.values()) else ():
        if metric["low"] <= 0:
            score = format_metric(metric, bounds=True)
            return f"no significant gain of correct over {other} images: BLEU-1 of all questions, real - {other}, {score}"
    return None


def show(seconds: dict[str, float], result: dict) -> None:
    """Prints the seconds of each stage, the main scores, and the path of the report."""
    table = Table("stage", "seconds", "budget", box=None, pad_edge=False)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.0f}", f"{STAGES[name][0]}")
    table.add_row("all", f"{sum(seconds.values()):.0f}", f"{sum(budget for budget, _ in STAGES.values())}")
    print_table(table)
    metrics = result["metrics"]
    table = Table("", *("real", "shuffled", "blank", "majority", "real - shuffled", "real - blank"), box=None, pad_edge=False)
    for label, key in ROWS.items():
        columns = ("real", "shuffled", "blank", "majority", "real_minus_shuffled", "real_minus_blank")
        table.add_row(label, *(format_metric(metrics.get(f"vqa/pooled/{column}/{key}"), bounds="minus" in column) for column in columns))
    print_table(table)
    for key, value in metrics.items():
        if key.startswith("transfer/") and key.endswith("/probe/macro_f1"):
            _, benchmark, encoder, *_ = key.split("/")
            print(f"{benchmark}, {encoder}: linear-probe macro-F1 {format_metric(value, bounds=True)}")
    print(f"peak memory of a stage: {result['peak_rss_mb']:.0f} MB; report: {RESULT.parent}/report.html")


ROWS = {
    "BLEU-1, all": "all/bleu1",
    "exact match, finding": "type=finding/exact",
    "exact match, count": "type=count/exact",
    "exact match, side": "type=side/exact",
}


def format_metric(metric: dict | None, *, bounds: bool) -> str:
    if metric is None:
        return "-"
    return f"{metric['value']:.2f}" + (f" [{metric['low']:.2f}, {metric['high']:.2f}]" if bounds else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
