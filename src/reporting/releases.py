"""Which training data of a run holds the same source release as a transfer set, from `data_prep/overlaps.yaml` and `lineage.json`."""

from src.data.lineage import lineage
from src.data.subsets import comparable, release_overlaps
from src.reporting.blocks import Table, Text
from src.reporting.run_data import RunData

CAPTION = (
    "Training data that holds the same source release as a benchmark, as lists of sources state it (data_prep/overlaps.yaml). The audit "
    "compares images instead: its column counts the training records of the whole source that show an image of the benchmark, and is empty "
    "where no audit covers it. Trained on: records of the source or sub-set in the stream."
)


def release_blocks(run: RunData, cells: list[dict]) -> list:
    """A table for the benchmarks of `cells`, and the benchmarks without a known overlap; nothing for a folder without a training record."""
    records = lineage(run.folder) if "mix" in run.config else []
    counts: dict[str, dict[str, int]] = {}  # benchmark -> source -> records, as the audit found them
    for cell in cells:
        test_set = cell.get("parts", [cell["benchmark"]])[-1]
        counts.setdefault(test_set, {}).update((cell.get("overlap") or {}).get("found", {}))
    rows: list[list] = []
    without: list[str] = []
    unlisted: list[str] = []
    for benchmark in counts if records else ():
        overlaps = release_overlaps().get(benchmark)
        own = [_row(benchmark, record, overlap, counts[benchmark]) for overlap in overlaps or () for record in records]
        rows += filter(None, own)
        if not any(own):
            (unlisted if overlaps is None else without).append(benchmark)
    blocks: list = []
    if rows:
        columns = ["benchmark", "run", "same release in", "strength", "trained on", "found by image in the source", "evidence", "stated by"]
        blocks.append(Table(columns, rows, caption=CAPTION))
    if without:
        blocks.append(Text(f"No source of the training data is known to hold the same release as {', '.join(without)}."))
    if unlisted:
        blocks.append(Text(f"data_prep/overlaps.yaml states nothing on {', '.join(unlisted)}.", "gap"))
    return blocks


def _row(benchmark: str, record: dict, overlap: dict[str, str], counts: dict[str, int]) -> list | None:
    """One row; None if the run did not draw from the source, or the source was built without this sub-set."""
    source, _, subset = overlap["with"].partition("/")
    known = next((one for one in record["sources"] if one["name"] == source), None)
    if known is None:
        return None
    subsets = {comparable(name): counts for name, counts in known.get("subsets", {}).items()}
    usage = subsets.get(comparable(subset))
    if subset and subsets and usage is None:
        return None
    if usage is None:
        records = f"{known['records']:,} records" if known["records"] is not None else "unknown"
        trained_on = f"unknown part of {records}" if subset and known["records"] is not None else records
    else:
        trained_on = "no: excluded" if usage["excluded"] else f"{usage['used']:,} of {usage['records']:,} records"
    return [
        benchmark,
        record["name"],
        overlap["with"],
        overlap["strength"],
        trained_on,
        counts.get(source),
        overlap["evidence"],
        overlap["from"],
    ]
