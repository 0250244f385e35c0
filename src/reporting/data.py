"""The data section: how many records of each source are in the shards, and how many were left out and why."""

import json
from collections import Counter
from pathlib import Path

from src.config.train import MixConfig
from src.data.lineage import lineage
from src.data.record import SPLITS
from src.data.shards import Shards
from src.data.subsets import usage_texts
from src.reporting.blocks import Folded, Section, Table, Text
from src.reporting.run_data import RunData
from src.runtime.errors import UserError

SUBSETS = "Records that are not used are excluded (mix.exclude), above the limit (mix.max_per_subset), validation records or leaks."
COUNTS = ("in", "written", "quarantined", "duplicates", "filtered")


def section(run: RunData) -> Section:
    shares = MixConfig(**run.config["mix"]).sampling_weights if "mix" in run.config else {}
    records = lineage(run.folder)[:1] if shares else []
    subsets = {source["name"]: source.get("subsets", {}) for record in records for source in record["sources"]}
    root = Path(run.config.get("data", {}).get("root", ""))
    total_share = sum(shares.values())
    rows, reasons, missing = [], [], []
    for source, share in shares.items():
        try:
            shards = Shards(root / source)
        except UserError:
            missing.append(source)
            continue
        counts = shards.manifest["counts"]
        totals = [sum(counts[split][name] for split in counts) for name in COUNTS]
        written = [counts[split]["written"] if split in counts else 0 for split in SPLITS]
        leaks = len(shards.rows("train")) - len(shards.rows("train", decontaminate=True)) if shards.audit else None
        rows.append([source, share / total_share, *totals, *written, leaks, shards.manifest.get("licence", "unverified")])
        reasons += [[source, reason, count] for reason, count in _quarantine_reasons(shards.folder).most_common(5)]
    blocks: list = []
    if rows:
        columns = ["source", "share of the stream", "records in", *COUNTS[1:], *SPLITS, "leaks into a test set", "licence"]
        blocks.append(Table(columns, rows, caption=_caption(run, audited=[row[0] for row in rows if row[-2] is not None])))
    if used := [[source, name, text] for source, usage in subsets.items() for name, text in usage_texts(usage).items()]:
        blocks.append(Folded("Sub-sets", [Table(["source", "sub-set", "used for training"], used, caption=SUBSETS)]))
    if reasons:
        blocks.append(Folded("Why records were quarantined", [Table(["source", "reason", "records"], reasons)]))
    if missing:
        blocks.append(Text(f"The shards of {', '.join(missing)} are not in {root} any more; their counts are unknown.", "gap"))
    return Section("Data", blocks or [Text("No model was trained in this folder, so there is no training data to show.", "gap")])


def _caption(run: RunData, *, audited: list[str]) -> str:
    counts = (
        "Every input record is written, quarantined (broken), a duplicate (same image, question and answer) or filtered by a documented "
        "rule."
    )
    if not audited:
        return f"{counts} No audit has compared these builds with the test sets, so whether records leak into them is unknown."
    excluded = run.config["mix"]["decontaminate"]
    action = "were left out of training" if excluded else "were NOT left out of training (mix.decontaminate=false)"
    return (
        f"{counts} Leaks are training records whose image or text is also in a test set, as found by `make audit`; they {action}. "
        "A source without a number has no audit of its current build and was not compared."
    )


def _quarantine_reasons(folder: Path) -> Counter:
    """Counts of quarantine reasons, without the detail that follows a colon."""
    path = folder / "quarantine.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(json.loads(line)["reason"].partition(":")[0] for line in lines)
