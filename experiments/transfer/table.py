"""Writes the cells of one or more transfer runs as CSV, and prints a readable table.

    python -m experiments.transfer.table runs=outputs/transfer,outputs/other > experiments/transfer/cells.csv

The CSV goes to standard output, the table to standard error. A CSV line is one score of a cell, or f1/<class>; few-shot
cells have macro_f1 only. Further lines are the means over benchmarks, `average_rank`, and the `macro_f1_difference` of two encoders with
Holm's p.
"""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors

COLUMNS = ("benchmark", "encoder", "protocol", "score", "value", "low", "high", "n", "seeds", "p_holm", "pooling", "unseen")
COLUMNS += ("weights", "parameters", "side", "mean", "std", "git")
SCORES = ("macro_f1", "balanced_accuracy", "auroc", "ece", "macro_f1@val", "macro_f1@0.5", "map", "cf1@0.5")  # of the sets that have them


def rows(folder: Path) -> list[dict]:
    """One row per cell and score, then means, ranks, differences and few-shot scores."""
    path = folder / "transfer.json"
    if not path.exists():
        raise UserError(f"{path}: does not exist; run python -m src.transfer first")
    content = json.loads(path.read_text())
    tables = content["transfer"]
    result = [row for cell in tables["cells"] for row in cell_rows(cell)]
    for mean in tables["means"]:
        for score in (score for score in SCORES if score == "macro_f1" or score in mean):
            result.append({"benchmark": "mean", "score": score, **mean, **mean.get(score, {})})
    for protocol, ranks in tables["ranks"].items():
        common = {"benchmark": "mean", "protocol": protocol, "score": "average_rank"}
        result += [common | {"encoder": encoder, "value": rank} for encoder, rank in ranks.items()]
    for difference in tables["differences"]:
        encoders = f"{difference['ours']} - {difference['other']}"
        result.append({"encoder": encoders, "score": "macro_f1_difference", **difference})
    for few_shot in tables["few_shot"]:
        result.append({"protocol": f"probe_{few_shot['shots']}shot", "score": "macro_f1", **few_shot})
    return [row | {"git": content["git"]} for row in result]


def cell_rows(cell: dict) -> list[dict]:
    pixels = cell["input"]
    common = {name: cell[name] for name in ("benchmark", "encoder", "protocol", "seeds", "parameters")}
    common |= {"pooling": " ".join(sorted(set(cell["pooling"]))), "unseen": unseen(cell["overlap"])}
    common |= {"weights": f"{cell['weights']['id']} {cell['weights']['sha256'][:12]}".strip(), "side": pixels["size"]}
    common |= {key: " ".join(f"{value:.4f}" for value in pixels[key]) for key in ("mean", "std")}
    per_class = [common | {"score": f"f1/{one['class']}", "value": one["f1"], "n": one["n"]} for one in cell["per_class"]]
    return [common | {"score": score} | cell[score] for score in SCORES if score in cell] + per_class


def unseen(overlap: dict | None) -> str:
    """Whether the encoder was trained without the test images. The audit answers this for our runs only."""
    if overlap is None or overlap["trained_on"] is None:
        return "unknown"
    if overlap["trained_on"]:
        return "no"
    return "yes, where it started unknown" if overlap.get("start") else "yes"


def table(rows: list[dict]) -> str:
    """Macro-F1 per protocol, with a row per benchmark and a column per encoder."""
    lines = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        cells = {(r["benchmark"], r["encoder"]): r for r in rows if r["protocol"] == protocol and r["score"] == "macro_f1"}
        encoders = list(dict.fromkeys(encoder for _, encoder in cells))
        lines += [f"{protocol:18}" + "".join(f"{encoder:>24}" for encoder in encoders)]
        for benchmark in dict.fromkeys(benchmark for benchmark, _ in cells):
            scores = (cells.get((benchmark, encoder)) for encoder in encoders)
            texts = (f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "" for r in scores)
            lines.append(f"{benchmark:18}" + "".join(f"{text:>24}" for text in texts))
    return "\n".join(lines)


@dataclass
class TableConfig:
    """Writes the cells of transfer runs as CSV to standard output, and a readable table to standard error.

    python -m experiments.transfer.table runs=outputs/transfer

    runs  run folders
    """

    runs: list[str]


@report_user_errors
def main(args: list[str]) -> None:
    all_rows = [row for folder in parse_arguments(TableConfig, args).runs for row in rows(Path(folder))]
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in all_rows:
        writer.writerow({name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()})
    print(table(all_rows), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
