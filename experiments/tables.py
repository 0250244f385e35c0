"""`make experiments`: renders every table of experiments/*/README.md from the CSV file in the same folder.

`TABLES` lists the tables with their README, CSV file and render function. The marks `<!-- name -->` and `<!-- /name -->` enclose a table.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.breadth import analysis
from experiments.shuffle.table import loss_curves
from src.runtime.cli import CONF
from src.runtime.errors import UserError, report_user_errors

FOLDER = Path(__file__).parent
Rows = list[dict[str, str]]
REAL_SCORES = {"exact": "exact match", "bleu1": "BLEU-1", "f1": "token F1"}
IMAGE_COLUMNS = {"real": "real", "shuffled": "shuffled", "blank": "blank", "real - shuffled": "real_minus_shuffled"}


def read_rows(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def store_metrics(report: Path, table: Path, selects: Callable[[str], bool]) -> None:
    """Copies the rows of a `report.csv` whose metric `selects` accepts into `table`."""
    rows = [row for row in read_rows(report) if selects(row["metric"])]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[dict]) -> str:
    """A Markdown table of all columns except the commit."""
    names = [name for name in rows[0] if name != "git"]
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def leaks(rows: Rows) -> str:
    return markdown([{"kind": row["kind"], **{name: f"{int(row[name]):,}" for name in ("planted", "found")}} for row in rows])


def transfer(rows: Rows) -> str:
    """Macro-F1 of the linear probe, with a row per benchmark and a column per encoder. The last row is the mean over the benchmarks of
    conf/benchmark."""
    probes = [row for row in rows if row["score"] == "macro_f1" and row["protocol"] == "probe" and row["benchmark"] != "mean"]
    cells = {(row["benchmark"], row["encoder"]): interval(row) for row in probes}
    counts = {row["benchmark"]: f"{int(row['n']):,}" for row in probes}
    encoders = list(dict.fromkeys(row["encoder"] for row in probes))
    lines = [{"benchmark": name, "n": counts[name]} | {encoder: cells.get((name, encoder), "") for encoder in encoders} for name in counts]
    configured = [name for name in counts if (CONF / "benchmark" / f"{name}.yaml").exists()]
    scores = {
        name: [float(row["value"]) for row in probes if row["encoder"] == name and row["benchmark"] in configured] for name in encoders
    }
    means = {name: f"{fmean(values):.3f}" for name, values in scores.items() if len(values) == len(configured)}
    others = ", ".join(name for name in counts if name not in configured)
    mean = {"benchmark": f"mean without {others}" if others else "mean", "n": ""} | dict.fromkeys(encoders, "") | means
    return markdown([*lines, mean])


def ablation(rows: Rows) -> str:
    """One line per trial: the setting that differs, and BLEU-1 on all image questions for each kind of image."""
    (setting,) = set(rows[0]) - {"run", "seed", "git", "data", "metric", "value", "low", "high", "n"}
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        metrics = {row["metric"]: row for row in rows if row["run"] == run}
        line = {setting: metrics["train/fill"][setting].strip("[]") or "nothing"}
        line |= {name: interval(metrics[f"vqa/pooled/{key}/all/bleu1"]) for name, key in IMAGE_COLUMNS.items()}
        lines.append(line)
    return markdown(lines)


def recipes(rows: Rows) -> str:
    """One line per recipe and kind of image: BLEU-1 on all image questions, mean over seeds and each seed."""
    lines = []
    for recipe in dict.fromkeys(row["run"].split("/")[1] for row in rows):
        own = [row for row in rows if row["run"].split("/")[1] == recipe]
        for label, key in IMAGE_COLUMNS.items():
            scores = [float(row["value"]) for row in own if row["metric"] == f"vqa/pooled/{key}/all/bleu1"]
            lines.append(
                {"recipe": recipe, "images": label, "mean": f"{fmean(scores):.3f}", "seeds": ", ".join(f"{one:.3f}" for one in scores)}
            )
    return markdown(lines)


def mini(rows: Rows) -> str:
    """One line per benchmark, for each kind of image: accuracy for multiple choice, BLEU-1 otherwise."""
    lines = []
    for name in dict.fromkeys(row["metric"].split("/")[1] for row in rows):
        metrics = {row["metric"].removeprefix(f"vqa/{name}/"): row for row in rows if row["metric"].startswith(f"vqa/{name}/")}
        score = "accuracy" if any(key.endswith("/accuracy") for key in metrics) else "bleu1"
        by_condition = {key.removesuffix(f"/all/{score}"): row for key, row in metrics.items() if key.endswith(score)}
        line = {"phantom of": name, "questions": f"{int(by_condition['majority']['n']):,}", "score": score}
        line["real"] = interval(by_condition["real"]) if "real" in by_condition else ""
        for key in ("shuffled", "blank", "none", "majority", "colour"):
            line[key] = f"{float(by_condition[key]['value']):.3f}" if key in by_condition else ""
        line["real - shuffled"] = interval(by_condition["real_minus_shuffled"]) if "real" in by_condition else ""
        lines.append(line)
    return markdown(lines)


def interval(row: dict[str, str]) -> str:
    return f"{float(row['value']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"


def real_answers(rows: Rows, *, benchmark: str) -> str:
    """One line per trial and image condition, then one per paired difference."""
    rows = [row for row in rows if row["benchmark"] == benchmark and row["slice"] == "all"]
    scores, differences = [], []
    for trial, condition in dict.fromkeys((row["trial"], row["condition"]) for row in rows):
        own = {row["score"]: row for row in rows if (row["trial"], row["condition"]) == (trial, condition)}
        values = {title: interval(own[score]) for score, title in REAL_SCORES.items()}
        n = f"{int(own['exact']['n']):,}"
        if condition and "_minus_" not in condition:
            scores.append({"trial": trial, "images": condition, "n": n} | values)
        else:
            label = f"{trial}: {condition.replace('_minus_', ' - ')}" if condition else trial
            differences.append({"difference": label, "n": n} | values | {"p, exact match": own["exact"]["p_holm"]})
    return "\n\n".join(markdown(lines) for lines in (scores, differences) if lines)


def real_slices(rows: Rows) -> str:
    """Exact match of each trial on slices of the questions, under its main condition."""
    slices = [row for row in rows if row["slice"] != "all" and row["score"] == "exact"]
    lines = []
    for benchmark, part in dict.fromkeys((row["benchmark"], row["slice"]) for row in slices):
        own = {row["trial"]: row for row in slices if (row["benchmark"], row["slice"]) == (benchmark, part)}
        n = f"{int(next(iter(own.values()))['n']):,}"
        cells = {row["trial"]: interval(own[row["trial"]]) if row["trial"] in own else "" for row in slices}
        lines.append({"benchmark": benchmark, "questions": part, "n": n} | cells)
    return markdown(lines)


def real_scorers(rows: Rows) -> str:
    """Every scorer on the answers of each trial under its main condition."""
    lines = []
    for benchmark, scorer in dict.fromkeys((row["benchmark"], row["scorer"]) for row in rows):
        own = {row["trial"]: f"{float(row['value']):.3f}" for row in rows if (row["benchmark"], row["scorer"]) == (benchmark, scorer)}
        lines.append({"benchmark": benchmark, "scorer": scorer} | {row["trial"]: own.get(row["trial"], "") for row in rows})
    return markdown(lines)


def real_trials(rows: Rows) -> str:
    lines = []
    for row in rows:
        line = {"trial": row["trial"], "seed": row["seed"], "settings": row["settings"], "samples": f"{int(row['samples']):,}"}
        line["hours"] = f"{float(row['train_hours']):.2f} + {float(row['evaluate_hours']):.2f}"
        line |= {"memory, GB": f"{float(row['peak_gb']):.1f}", "data": row["data"], "commit": row["commit_of_training"][:12]}
        lines.append(line)
    return markdown(lines)


def real_cells(rows: Rows) -> str:
    """Macro-F1 of the linear probe per encoder, then the paired differences."""
    scores, differences = [], []
    for row in rows:
        if row["score"] == "macro_f1":
            line = {"encoder": row["encoder"], "n": f"{int(row['n']):,}", "macro-F1": interval(row)}
            scores.append(line | {"test images unseen": row["unseen"]})
        elif row["score"] == "macro_f1_difference":
            differences.append({"difference": row["encoder"], "macro-F1": interval(row), "p (Holm)": row["p_holm"]})
    return "\n\n".join(markdown(lines) for lines in (scores, differences) if lines)


def breadth(rows: Rows) -> str:
    return analysis.tables(analysis.read(rows))


def bench(rows: Rows) -> str:
    lines = []
    for row in rows:
        value = row["value"] if row["met"] == "yes" else f"**{row['value']}, missed**"
        lines.append({"": row["name"], "value": value} | {name: row[name] for name in ("target", "ours", "peer", "unit")})
    return markdown(lines)


class Table(NamedTuple):
    """`render` makes table `name` of `readme` from `file`. Both paths are relative to experiments/."""

    readme: str
    name: str
    file: str
    render: Callable[[Rows], str]


# Written by `python -m experiments.real.run`. A table without a CSV file has not been measured yet.
REAL = [
    Table("real/README.md", "trials", "real/trials.csv", real_trials),
    Table("real/README.md", "slake", "real/results.csv", partial(real_answers, benchmark="slake")),
    Table("real/README.md", "vqa_med_2019", "real/results.csv", partial(real_answers, benchmark="vqa_med_2019")),
    Table("real/README.md", "slices", "real/results.csv", real_slices),
    Table("real/README.md", "scorers", "real/scorers.csv", real_scorers),
    Table("real/README.md", "cells", "real/cells.csv", real_cells),
]
TABLES = [
    Table("ablations/README.md", "leave_kind_out", "ablations/leave_kind_out.csv", ablation),
    Table("ablations/README.md", "recipes", "ablations/recipes.csv", recipes),
    Table("bench/README.md", "bench", "bench/results.csv", bench),
    Table("breadth/README.md", "breadth", "breadth/results.csv", breadth),
    Table("leaks/README.md", "leaks", "leaks/leaks.csv", leaks),
    Table("real/README.md", "row_counts", "real/row_counts.csv", markdown),
    Table("shuffle/README.md", "loss_curves", "shuffle/loss_curves.csv", lambda rows: markdown(loss_curves(rows))),
    Table("transfer/README.md", "cells", "transfer/cells.csv", transfer),
    Table("vqa/README.md", "mini", "vqa/mini.csv", mini),
    Table("vqa/README.md", "prompts", "vqa/prompts.csv", markdown),
    Table("vqa/README.md", "protocols", "vqa/protocols.csv", markdown),
    Table("vqa/README.md", "published", "vqa/published.csv", markdown),
    Table("vqa/README.md", "scorers", "vqa/scorers.csv", markdown),
    Table("vqa/README.md", "unchanged", "vqa/unchanged.csv", markdown),
    *(table for table in REAL if (FOLDER / table.file).exists()),
]


def insert_table(readme: str, name: str, text: str) -> str:
    """The README with `text` between the two marks of `name`. Raises `UserError` if each mark is not there exactly once."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise UserError(f"README.md: table '{name}' has no unique marks; write {begin.strip()} and {end} once each")
    before, rest = readme.split(begin)
    return before + begin + text + "\n" + end + rest.split(end)[1]


def render_readme(table: Table, folder: Path = FOLDER) -> tuple[Path, str]:
    """The path of the README of a table, and its text with the table rendered from the CSV file."""
    path = folder / table.readme
    return path, insert_table(path.read_text(), table.name, table.render(read_rows(folder / table.file)))


@report_user_errors
def main() -> None:
    for table in TABLES:
        path, text = render_readme(table)
        if text != path.read_text():
            path.write_text(text)
            print(f"{table.readme}: {table.name}")
    analysis.plot(analysis.read(read_rows(FOLDER / "breadth/results.csv")), FOLDER / "breadth/breadth.png")


if __name__ == "__main__":
    main()
