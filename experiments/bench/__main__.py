"""`python -m experiments.bench [only=train,stream]`: benchmarks against peers, both sides in turn, into outputs/bench/result.json.

Each group runs in a process of its own on one thread, and replaces only its own figures, so an interrupted bench keeps what it has.
"""

import csv
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from experiments.bench.measured import Measured
from src.runtime.environment import environment
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.run_folder import git_commit, write_atomically
from src.runtime.tables import print_table

GROUPS = ("train", "stream", "data", "evaluate", "transfer", "sweep")
OUT = Path("outputs/bench/result.json")
TABLE = Path("experiments/bench/results.csv")


@report_user_errors
def main(words: list[str]) -> None:
    chosen = asked(words)
    if len(chosen) == 1:
        run(chosen[0])
    else:
        failed = [group for group in chosen if subprocess.run([sys.executable, "-m", "experiments.bench", f"only={group}"]).returncode]
        if failed:
            raise UserError(f"the benchmarks of {', '.join(failed)} ended early; what they had measured is kept")


def asked(words: list[str]) -> list[str]:
    if any(not word.startswith("only=") for word in words):
        raise UserError(f"bench takes only=GROUP,GROUP of {', '.join(GROUPS)}, found {' '.join(words)}")
    chosen = [group for word in words for group in word.removeprefix("only=").split(",")] or list(GROUPS)
    for group in chosen:
        if group not in GROUPS:
            raise UserError(f"only={group}{suggest(group, GROUPS)}")
    return chosen


def run(group: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    found = []
    for measured in importlib.import_module(f"experiments.bench.{group}").measure():
        found.append(measured)
        keep(group, found)
        print(f"{measured.name} {measured.value:.3g}")
    show(group, found)


def keep(group: str, found: list[Measured]) -> None:
    """Puts what a group has measured so far beside what the others have."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(OUT.read_text()) if OUT.exists() else {"name": "bench", "metrics": {}}
    stored["metrics"] |= {f"bench/{one.name}": figures(one) | {"group": group, "git": git_commit()} for one in found}
    write_atomically(OUT, json.dumps(stored | {"git": git_commit(), "environment": environment()}, indent=1))


def figures(one: Measured) -> dict:
    return {name: value for name, value in asdict(one).items() if name != "name"}


def show(group: str, found: list[Measured]) -> None:
    """A table on the screen, and the group's rows of the table in the repository."""
    table = Table(group, "value", "rounds", "ours", "peer", "unit", "target", box=None, pad_edge=False)
    for one in found:
        table.add_row(*row(one), "" if one.met else "[red]missed[/red]")
    print_table(table)
    rows = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    lines = [[group, *row(one), "yes" if one.met else "no", git_commit()] for one in found]
    kept = [list(line.values()) for line in rows if line["group"] != group]
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted([*kept, *lines], key=lambda line: GROUPS.index(line[0]))])


COLUMNS = ["group", "name", "value", "rounds", "ours", "peer", "unit", "target", "met", "git"]


def row(one: Measured) -> list[str]:
    spread = f"{one.low:.3g} to {one.high:.3g} ({one.n})" if one.n > 1 else ""
    return [one.name, f"{one.value:.3g}", spread, f"{one.ours:.4g}", "" if one.peer is None else f"{one.peer:.4g}", one.unit, one.target]


if __name__ == "__main__":
    main(sys.argv[1:])
