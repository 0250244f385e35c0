"""What went into the shards that a run was trained and tested on, and what did not."""

import json
from collections import Counter
from pathlib import Path

from src.config.train import MixConfig
from src.data.record import SPLITS
from src.data.shards import Shards
from src.reporting.blocks import Folded, Section, Table, Text
from src.reporting.run_data import RunData
from src.runtime.errors import UserError

COUNTS = ("in", "written", "quarantined", "duplicates", "filtered")


def section(run: RunData) -> Section:
    shares = MixConfig(**run.config["mix"]).sampling_weights if "mix" in run.config else {}
    root = Path(run.config.get("data", {}).get("root", ""))
    total = sum(shares.values())
    rows, refused, gone = [], [], []
    for source, share in shares.items():
        try:
            opened = Shards(root / source)
        except UserError:
            gone.append(source)
            continue
        counts = opened.manifest["counts"]
        added = {name: sum(counts[split][name] for split in counts) for name in COUNTS}
        written = [counts[split]["written"] if split in counts else 0 for split in SPLITS]
        leaks = len(opened.rows("train")) - len(opened.rows("train", decontaminate=True)) if opened.audit else None
        rows.append([source, share / total, *added.values(), *written, leaks, opened.manifest.get("licence", "unverified")])
        refused += [[source, reason, number] for reason, number in _reasons(opened.folder).most_common(5)]
    blocks: list = []
    if rows:
        columns = ["source", "share of the stream", "records in", *COUNTS[1:], *SPLITS, "leaks into a test set", "licence"]
        blocks.append(Table(columns, rows, caption=_caption(run)))
    if refused:
        blocks.append(Folded("Why records were quarantined", [Table(["source", "reason", "records"], refused)]))
    if gone:
        blocks.append(Text(f"Shards of {', '.join(gone)} are no longer in {root}, so nothing is said about them.", "gap"))
    return Section("Data", blocks or [Text("No model was trained in this folder, so there is no training data to show.", "gap")])


def _caption(run: RunData) -> str:
    rule = "were left out of training" if run.config["mix"]["decontaminate"] else "were NOT left out of training (mix.decontaminate=false)"
    return (
        "Every record that came in is written, quarantined (broken), a duplicate (same image, question and answer) or filtered by a stated "
        f"rule. Training records whose image or text stands in a test set {rule}; `make audit` finds them. A source "
        "without a count has no audit of its present build."
    )


def _reasons(folder: Path) -> Counter:
    """Quarantine reasons without their detail, which follows a colon."""
    path = folder / "quarantine.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(json.loads(line)["reason"].partition(":")[0] for line in lines)
