"""`make experiments`: renders every table of experiments/*/README.md from the CSV file in the same folder.

A table stands between `<!-- name -->` and `<!-- /name -->`; `TABLES` says where, which file it is made of, and how.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.breadth import analysis as breadths
from src.runtime.cli import CONF
from src.runtime.errors import UserError, report_user_errors

FOLDER = Path(__file__).parent
Rows = list[dict[str, str]]


def rows_of(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(report: Path, table: Path, kept: Callable[[str], bool]) -> None:
    """Stores the lines of a `report.csv` whose metric is `kept`."""
    rows = [row for row in rows_of(report) if kept(row["metric"])]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[dict]) -> str:
    """All columns but the commit."""
    names = [name for name in rows[0] if name != "git"]
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def leaks(rows: Rows) -> str:
    return markdown([{"kind": row["kind"], **{name: f"{int(row[name]):,}" for name in ("planted", "found")}} for row in rows])


def transfer(rows: Rows) -> str:
    """Macro-F1 of the linear probe: benchmarks down, encoders across; last the mean over the benchmarks that ship with the project."""
    kept = [row for row in rows if row["score"] == "macro_f1" and row["protocol"] == "probe" and row["benchmark"] != "mean"]
    cells = {(row["benchmark"], row["encoder"]): interval(row) for row in kept}
    counts = {row["benchmark"]: f"{int(row['n']):,}" for row in kept}
    encoders = list(dict.fromkeys(row["encoder"] for row in kept))
    lines = [{"benchmark": one, "n": counts[one]} | {name: cells.get((one, name), "") for name in encoders} for one in counts]
    shipped = [one for one in counts if (CONF / "benchmark" / f"{one}.yaml").exists()]
    values = {name: [float(row["value"]) for row in kept if row["encoder"] == name and row["benchmark"] in shipped] for name in encoders}
    means = {name: f"{fmean(found):.3f}" for name, found in values.items() if len(found) == len(shipped)}
    others = ", ".join(one for one in counts if one not in shipped)
    mean = {"benchmark": f"mean without {others}" if others else "mean", "n": ""} | dict.fromkeys(encoders, "") | means
    return markdown([*lines, mean])


def ablation(rows: Rows) -> str:
    """One line per trial: the setting that differs, and BLEU-1 on all image questions with each kind of image."""
    (setting,) = set(rows[0]) - {"run", "seed", "git", "data", "metric", "value", "low", "high", "n"}
    shown = {"real": "real", "shuffled": "shuffled", "blank": "blank", "real - shuffled": "real_minus_shuffled"}
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        metrics = {row["metric"]: row for row in rows if row["run"] == run}
        line = {setting: metrics["train/fill"][setting].strip("[]") or "nothing"}
        line |= {name: interval(metrics[f"vqa/pooled/{key}/all/bleu1"]) for name, key in shown.items()}
        lines.append(line)
    return markdown(lines)


def mini(rows: Rows) -> str:
    """One line per benchmark: accuracy where the answer is chosen, else BLEU-1, with each kind of image."""
    lines = []
    for name in dict.fromkeys(row["metric"].split("/")[1] for row in rows):
        found = {row["metric"].removeprefix(f"vqa/{name}/"): row for row in rows if row["metric"].startswith(f"vqa/{name}/")}
        score = "accuracy" if any(key.endswith("/accuracy") for key in found) else "bleu1"
        of = {key.removesuffix(f"/all/{score}"): row for key, row in found.items() if key.endswith(score)}
        line = {"phantom of": name, "questions": f"{int(of['majority']['n']):,}", "score": score}
        line["real"] = interval(of["real"]) if "real" in of else ""
        line |= {key: f"{float(of[key]['value']):.3f}" if key in of else "" for key in ("shuffled", "blank", "none", "majority", "colour")}
        lines.append(line | {"real - shuffled": interval(of["real_minus_shuffled"]) if "real" in of else ""})
    return markdown(lines)


def interval(row: dict[str, str]) -> str:
    return f"{float(row['value']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"


def breadth(rows: Rows) -> str:
    return breadths.tables(breadths.read(rows))


def bench(rows: Rows) -> str:
    return columns(rows, "target", "ours", "peer", "unit")


def columns(rows: Rows, *names: str) -> str:
    return markdown([{"": row["name"], "value": judged(row)} | {name: row[name] for name in names} for row in rows])


def judged(row: dict[str, str]) -> str:
    return row["value"] if row["met"] == "yes" else f"**{row['value']}, missed**"


class Table(NamedTuple):
    """Table `name` of `readme` is made of `file` by `render`; both paths stand below experiments/."""

    readme: str
    name: str
    file: str
    render: Callable[[Rows], str]


TABLES = [
    Table("ablations/README.md", "leave_kind_out", "ablations/leave_kind_out.csv", ablation),
    Table("bench/README.md", "bench", "bench/results.csv", bench),
    Table("breadth/README.md", "breadth", "breadth/results.csv", breadth),
    Table("leaks/README.md", "leaks", "leaks/leaks.csv", leaks),
    Table("real/README.md", "real", "real/real.csv", markdown),
    Table("transfer/README.md", "cells", "transfer/cells.csv", transfer),
    Table("vqa/README.md", "mini", "vqa/mini.csv", mini),
    Table("vqa/README.md", "published", "vqa/published.csv", markdown),
    Table("vqa/README.md", "scorers", "vqa/scorers.csv", markdown),
]


def put(readme: str, name: str, text: str) -> str:
    """The README with `text` between the two marks of `name`; raises `UserError` where it does not have them."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise UserError(f"the README must have {begin.strip()} and {end} once each")
    before, rest = readme.split(begin)
    return before + begin + text + "\n" + end + rest.split(end)[1]


def rendered(table: Table, folder: Path = FOLDER) -> tuple[Path, str]:
    """The README that a table stands in, and what it reads with that table rendered anew."""
    path = folder / table.readme
    return path, put(path.read_text(), table.name, table.render(rows_of(folder / table.file)))


@report_user_errors
def main() -> None:
    for table in TABLES:
        path, text = rendered(table)
        if text != path.read_text():
            path.write_text(text)
            print(f"{table.readme}: {table.name}")
    breadths.plot(breadths.read(rows_of(FOLDER / "breadth/results.csv")), FOLDER / "breadth/breadth.png")


if __name__ == "__main__":
    main()
