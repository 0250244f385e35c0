"""`python -m experiments.bench only=train,stream`: runs the benchmarks against peers and writes outputs/bench/result.json.

Each group runs in its own process on one thread and replaces only its own metrics, so an interrupted run keeps what it has measured.
"""

import csv
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from experiments.bench.measurement import Measurement
from src.runtime.arguments import parse_arguments
from src.runtime.atomic_file import write_atomically
from src.runtime.environment import environment
from src.runtime.errors import UserError, report_user_errors
from src.runtime.run_folder import git_commit
from src.runtime.schema import check_choice
from src.runtime.tables import print_table

GROUPS = ("trainer", "train", "trl", "stream", "data", "readers", "evaluate", "transfer", "sweep", "startup", "roofline")
OUT = Path("outputs/bench/result.json")
TABLE = Path("experiments/bench/results.csv")
COLUMNS = ["group", "name", "value", "rounds", "ours", "peer", "unit", "target", "met", "git"]


@dataclass
class BenchConfig:
    """Runs the benchmarks against peers, both sides in turn, each group in its own process.

    python -m experiments.bench only=train,stream

    only  groups to run: trainer, train, trl, stream, data, readers, evaluate, transfer, sweep, startup, roofline (default: all)
    """

    only: list[str] = field(default_factory=lambda: list(GROUPS))


@report_user_errors
def main(args: list[str]) -> None:
    groups = parse_arguments(BenchConfig, args).only
    for group in groups:
        check_choice("only", group, GROUPS)
    if len(groups) == 1:
        run_group(groups[0])
    else:
        failed = [group for group in groups if subprocess.run([sys.executable, "-m", "experiments.bench", f"only={group}"]).returncode]
        if failed:
            raise UserError(
                f"bench: the groups {', '.join(failed)} failed; their measurements so far are stored, run them again with only="
            )


def run_group(group: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    measurements = []
    for measurement in importlib.import_module(f"experiments.bench.{group}").measure():
        measurements.append(measurement)
        store_metrics(group, measurements)
        print(f"{measurement.name} {measurement.value:.3g}")
    show_and_store_table(group, measurements)


def store_metrics(group: str, measurements: list[Measurement]) -> None:
    """Merges the measurements of one group into the result file."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(OUT.read_text()) if OUT.exists() else {"name": "bench", "metrics": {}}
    for measurement in measurements:
        fields = asdict(measurement)
        result["metrics"][f"bench/{fields.pop('name')}"] = fields | {"group": group, "git": git_commit()}
    write_atomically(OUT, json.dumps(result | {"git": git_commit(), "environment": environment()}, indent=1))


def show_and_store_table(group: str, measurements: list[Measurement]) -> None:
    """Prints the measurements and replaces the rows of the group in the CSV file."""
    table = Table(group, "value", "rounds", "ours", "peer", "unit", "target", box=None, pad_edge=False)
    for measurement in measurements:
        table.add_row(*table_row(measurement), "" if measurement.met else "[red]missed[/red]")
    print_table(table)
    stored = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    rows = [list(row.values()) for row in stored if row["group"] != group]
    rows += [[group, *table_row(measurement), "yes" if measurement.met else "no", git_commit()] for measurement in measurements]
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted(rows, key=lambda row: GROUPS.index(row[0]))])


def table_row(measurement: Measurement) -> list[str]:
    rounds = f"{measurement.low:.3g} to {measurement.high:.3g} ({measurement.n})" if measurement.n > 1 else ""
    peer = "" if measurement.peer is None else f"{measurement.peer:.4g}"
    return [measurement.name, f"{measurement.value:.3g}", rounds, f"{measurement.ours:.4g}", peer, measurement.unit, measurement.target]


if __name__ == "__main__":
    main(sys.argv[1:])
