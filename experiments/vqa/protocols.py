"""The answers of one run under every published protocol, and the share of them that need no image.

    python -m experiments.vqa.protocols predictions=outputs/NAME/predictions benchmarks=slake,vqa_med_2019

Writes `protocols.csv` and `unchanged.csv`; `make experiments` renders them in the README of this folder.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.vqa.scorers import percent
from src.evaluation.predictions_file import read_predictions
from src.metrics.protocols import PROTOCOLS
from src.metrics.vqa import unchanged
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors
from src.runtime.run_folder import git_commit

FOLDER = Path(__file__).parent
CONDITIONS = ("real", "shuffled", "majority")


def read_files(folder: Path, benchmarks: list[str], conditions: tuple[str, ...]) -> dict[tuple[str, str], list[dict]]:
    paths = {(name, condition): folder / f"{name}.{condition}.jsonl" for name in benchmarks for condition in conditions}
    files = {key: read_predictions(path) for key, path in paths.items()}
    if empty := [str(paths[key]) for key, items in files.items() if not items]:
        raise UserError(f"{empty[0]}: has no predictions; evaluate the run on this benchmark with images=[real,shuffled,blank,none]")
    return files


def protocol_rows(files: dict[tuple[str, str], list[dict]]) -> list[dict]:
    """A row per protocol: its score in per cent for each file, empty if no question applies. Protocols without a score are left out."""
    rows = []
    for name, (score, note) in PROTOCOLS.items():
        values = {f"{benchmark} {condition}": score(items) for (benchmark, condition), items in files.items()}
        if any(value is not None for value in values.values()):
            rows.append({"protocol": name, **{key: percent(value) for key, value in values.items()}, "why it differs": note})
    return rows


def unchanged_rows(files: dict[tuple[str, str], list[dict]]) -> list[dict]:
    """A row per benchmark and kind of question: the share of answers that stay the same without the own image, with intervals."""
    rows: dict[tuple[str, str], dict] = {}
    for (name, condition), items in files.items():
        if condition != "real":
            for key, row in unchanged(files[name, "real"], items, resamples=10_000, seed=0).items():
                part = key.removesuffix("/unchanged").removeprefix("type=")
                cells = rows.setdefault((name, part), {"benchmark": name, "questions on": part, "n": str(row["n"])})
                cells[condition] = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return [row for row in rows.values() if row["questions on"] not in ("seen", "unseen")]


@dataclass
class ProtocolsConfig:
    """Writes protocols.csv and unchanged.csv.

    python -m experiments.vqa.protocols predictions=outputs/NAME/predictions benchmarks=slake,vqa_med_2019

    predictions  the folder `predictions` of an evaluated run
    benchmarks   the benchmarks to read
    """

    predictions: Path
    benchmarks: list[str]


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(ProtocolsConfig, args)
    write(FOLDER / "protocols.csv", protocol_rows(read_files(config.predictions, config.benchmarks, CONDITIONS)))
    files = read_files(config.predictions, config.benchmarks, ("real", "blank", "shuffled", "none"))
    write(FOLDER / "unchanged.csv", unchanged_rows(files))
    print("wrote protocols.csv and unchanged.csv; run make experiments to render them in the README")


def write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "git"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "git": git_commit()} for row in rows)


if __name__ == "__main__":
    main(sys.argv[1:])
