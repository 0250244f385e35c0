"""The cells of one or more transfer runs as a CSV, and as a table for people.

    python -m experiments.transfer.table outputs/transfer [more run folders] > experiments/transfer/cells.csv

The CSV goes to standard output, the table to the terminal (standard error). A line is a cell and a score: macro_f1,
balanced_accuracy, auroc, f1/<class>; of few images macro_f1 alone. Besides: the means over benchmarks, `average_rank`, and
`macro_f1_difference` of two encoders, with Holm's p.
"""

import csv
import json
import sys
from pathlib import Path

from src.runtime.errors import UserError, report_user_errors

COLUMNS = ("benchmark", "encoder", "protocol", "score", "value", "low", "high", "n", "seeds", "p_holm", "pooling", "unseen")
COLUMNS += ("weights", "parameters", "side", "mean", "std", "git")
SCORES = ("macro_f1", "balanced_accuracy", "auroc")


def rows(folder: Path) -> list[dict]:
    """One per cell and score, then means, ranks, differences and few-shot fits."""
    path = folder / "transfer.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; run python -m src.transfer first")
    said = json.loads(path.read_text())
    tables = said["transfer"]
    found = [row for cell in tables["cells"] for row in cell_rows(cell)]
    found += [{"benchmark": "mean", "score": "macro_f1", **one} for one in tables["means"]]
    for protocol, ranks in tables["ranks"].items():
        about = {"benchmark": "mean", "protocol": protocol, "score": "average_rank"}
        found += [about | {"encoder": encoder, "value": rank} for encoder, rank in ranks.items()]
    for one in tables["differences"]:
        found.append({"encoder": f"{one['ours']} - {one['other']}", "score": "macro_f1_difference", **one})
    for one in tables["few_shot"]:
        found.append({"protocol": f"probe_{one['shots']}shot", "score": "macro_f1", **one})
    return [row | {"git": said["git"]} for row in found]


def cell_rows(cell: dict) -> list[dict]:
    shown = cell["input"]
    known = {name: cell[name] for name in ("benchmark", "encoder", "protocol", "seeds", "parameters")}
    known |= {"pooling": " ".join(sorted(set(cell["pooling"]))), "unseen": unseen(cell["overlap"])}
    known |= {"weights": f"{cell['weights']['id']} {cell['weights']['sha256'][:12]}".strip(), "side": shown["size"]}
    known |= {key: " ".join(f"{value:.4f}" for value in shown[key]) for key in ("mean", "std")}
    per_class = [known | {"score": f"f1/{one['class']}", "value": one["f1"], "n": one["n"]} for one in cell["per_class"]]
    return [known | {"score": score} | cell[score] for score in SCORES] + per_class


def unseen(overlap: dict | None) -> str:
    """What may be said of an encoder and a benchmark: ours is asked through the audit of its shards, others cannot be."""
    if overlap is None or overlap["trained_on"] is None:
        return "unknown"
    if overlap["trained_on"]:
        return "no"
    return "yes, where it started unknown" if overlap.get("start") else "yes"


def table(found: list[dict]) -> str:
    """Macro-F1, benchmarks down, encoders across, per protocol."""
    lines = []
    for protocol in dict.fromkeys(row["protocol"] for row in found):
        cells = {(r["benchmark"], r["encoder"]): r for r in found if r["protocol"] == protocol and r["score"] == "macro_f1"}
        encoders = list(dict.fromkeys(encoder for _, encoder in cells))
        lines += [f"{protocol:18}" + "".join(f"{encoder:>24}" for encoder in encoders)]
        for benchmark in dict.fromkeys(benchmark for benchmark, _ in cells):
            said = (cells.get((benchmark, encoder)) for encoder in encoders)
            texts = (f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "" for r in said)
            lines.append(f"{benchmark:18}" + "".join(f"{text:>24}" for text in texts))
    return "\n".join(lines)


@report_user_errors
def main(folders: list[str]) -> None:
    if not folders:
        raise UserError("name at least one run folder, such as outputs/transfer")
    found = [row for folder in folders for row in rows(Path(folder))]
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()})
    print(table(found), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
