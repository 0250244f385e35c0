"""`python -m experiments.mini.run`: the whole path on phantom data, one command per stage, each against its budget of seconds.

Each stage keeps what is complete and continues what is not, so an interrupted run is continued by the same command. It ends with
exit code 1 where the model answers no better with the question's own image than with another or a blank one.
`small` tries every stage in a minute, in a copy of the tree that is thrown away (`experiments.soak.interrupt`).
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.table import Table

from src.runtime.tables import print_table

MIX = "pmc_oa,quilt_1m,medicat,pubmedqa,medmcqa,pmc_vqa,roco,pathvqa,ubench,vqa_med_2019,medqa,iu_xray,slake,vqa_rad"
BENCHMARKS = "pathvqa,vqa_med_2019,vqa_rad,vqa_rad_disjoint,slake,pmc_vqa,medqa,medmcqa,pubmedqa"
STAGES: dict[str, tuple[int, list[str]]] = {  # name: (seconds on two cores, commands)
    "raw data and shards": (
        80,
        [
            f"data_prep.phantom sources={MIX},breastmnist,retinamnist out=data/phantom/raw",
            f"data_prep.shards sources={MIX} raw=data/phantom/raw out=data/phantom/shards",
            "data_prep.audit.leaks out=data/phantom/shards raw=data/phantom/raw",
        ],
    ),
    "language model": (40, ["data_prep.phantom.weights parts=language out=data/phantom/weights shards=data/phantom/shards"]),
    "vision stand-in": (60, ["data_prep.phantom.weights parts=vision out=data/phantom/weights shards=data/phantom/shards"]),
    "training": (220, ["src.train +experiment=mini"]),
    "evaluation": (100, [f"src.evaluate run=mini benchmarks=[{BENCHMARKS}]"]),
    "transfer": (60, ["src.transfer encoder=[run:mini,scratch:mini] benchmark=[breastmnist,retinamnist] raw=data/phantom/raw"]),
    "report": (20, ["src.report runs=mini"]),
}
SMALL = {  # what `small` adds: every stage and no scores worth reading, in about a minute
    "data_prep.phantom": "scale=0.05",
    "data_prep.phantom.weights": "language_steps=4 vision_steps=4",
    "src.train": "optim.steps=6 optim.warmup=2 trainer.val_every=2 data.val_samples=4",
    "src.evaluate": "limit=12 batch=4 resamples=100",
    "src.transfer": "seeds=1 resamples=100",
}
RESULT = Path("outputs/mini/result.json")


def main(words: list[str]) -> int:
    if words not in ([], ["small"]):
        print(f"error: {' '.join(words)} is not known; allowed: small", file=sys.stderr)
        return 2
    seconds: dict[str, float] = {}
    for number, (name, (budget, commands)) in enumerate(STAGES.items(), 1):
        print(f"\n[{number}/{len(STAGES)}] {name} (budget {budget} s)", flush=True)
        begun = time.perf_counter()
        for command in commands:
            command = f"{command} {SMALL.get(command.split()[0], '')}".strip() if words else command
            print(f"$ python -m {command}", flush=True)
            code = run_command(command)
            if code:
                print(f"stopped in '{name}' (exit code {code}); the same command continues", file=sys.stderr)
                return code if code > 0 else 128 - code  # as a shell says that a signal ended it
        seconds[name] = time.perf_counter() - begun
    result = json.loads(RESULT.read_text())
    show(seconds, result)
    blind = None if words else needs_no_image(result["metrics"])
    if blind:
        print(f"error: {blind}", file=sys.stderr)
    return int(bool(blind))


def run_command(command: str) -> int:
    """The exit code of `python -m <command>`. Ctrl-C reaches the stage too, which saves what it has; it is waited for."""
    process = subprocess.Popen([sys.executable, "-m", *command.split()])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def needs_no_image(metrics: dict) -> str | None:
    """What is wrong with a run whose answers are no better with the question's own image; None if they are, or if it was not asked."""
    found = {other: metrics.get(f"vqa/pooled/real_minus_{other}/all/bleu1") for other in ("shuffled", "blank")}
    for other, metric in found.items() if all(found.values()) else ():
        if metric["low"] <= 0:
            return f"own images are not shown to beat {other} ones: BLEU-1 of all questions, real - {other}, {shown(metric, bounds=True)}"
    return None


def show(seconds: dict[str, float], result: dict) -> None:
    """What each stage took, the main numbers, and where the report is."""
    table = Table("stage", "seconds", "budget", box=None, pad_edge=False)
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:.0f}", f"{STAGES[name][0]}")
    table.add_row("all", f"{sum(seconds.values()):.0f}", f"{sum(budget for budget, _ in STAGES.values())}")
    print_table(table)
    metrics = result["metrics"]
    table = Table("", *("real", "shuffled", "blank", "majority", "real - shuffled", "real - blank"), box=None, pad_edge=False)
    for label, key in ROWS.items():
        columns = ("real", "shuffled", "blank", "majority", "real_minus_shuffled", "real_minus_blank")
        table.add_row(label, *(shown(metrics.get(f"vqa/pooled/{column}/{key}"), bounds="minus" in column) for column in columns))
    print_table(table)
    for key, value in metrics.items():
        if key.startswith("transfer/") and key.endswith("/probe/macro_f1"):
            _, benchmark, encoder, *_ = key.split("/")
            print(f"{benchmark}, {encoder}: macro-F1 of a linear probe {shown(value, bounds=True)}")
    print(f"largest stage: {result['peak_rss_mb']:.0f} MB; report: {RESULT.parent}/report.html")


ROWS = {
    "BLEU-1, all": "all/bleu1",
    "exact match, finding": "type=finding/exact",
    "exact match, count": "type=count/exact",
    "exact match, side": "type=side/exact",
}


def shown(metric: dict | None, *, bounds: bool) -> str:
    if metric is None:
        return "-"
    return f"{metric['value']:.2f}" + (f" [{metric['low']:.2f}, {metric['high']:.2f}]" if bounds else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
