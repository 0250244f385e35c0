"""Joins the parts of a source into its index, its quarantine and its manifest, which is written last."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.build.index import join_parts, write_subsets
from data_prep.build.shard_writer import ShardPart, read_part
from data_prep.sources import Source
from src.data.record import SPLITS
from src.runtime.atomic_file import atomic_file
from src.runtime.errors import UserError

COUNTS = ("in", "written", "quarantined", "duplicates", "filtered")


def finalize_source(
    folder: Path, shards: list[str], entry: Source, *, settings: dict[str, Any], extra: dict[str, Any], quarantine_limit: float
) -> dict[str, Any]:
    """Writes `index.arrow`, `subsets.arrow` of a source with sub-sets, `quarantine.jsonl` and `manifest.json`; returns the manifest.

    `settings` enter the fingerprint of the manifest, `extra` entries do not. Raises `UserError` if more than
    `quarantine_limit` of the rows are quarantined; then the quarantine is written, the manifest is not.
    """
    parts = [read_part(folder, shard) for shard in shards]
    counts = {split: Counter(dict.fromkeys(COUNTS, 0)) for split in SPLITS}
    for part in parts:
        counts[part.split].update(part.counts)
    for split, split_counts in counts.items():
        assert split_counts["in"] == sum(split_counts[name] for name in COUNTS[1:]), f"{entry.name} {split}: {split_counts} does not add up"
    _write_quarantine(folder, parts)
    _check_quarantine(folder, entry.name, counts, parts, quarantine_limit)
    tars = [part for part in parts if part.tar]
    (folder / "audit.json").unlink(missing_ok=True)  # it describes the index that is replaced now
    join_parts(folder, tars)
    manifest = {
        "source": entry.name,
        "licence": entry.licence.name,
        "settings": settings,
        "counts": {split: dict(split_counts) for split, split_counts in counts.items()},
        "shards": [part.tar for part in tars],
    }
    manifest["fingerprint"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    # The fingerprint identifies the samples, so the entries below are not part of it.
    manifest |= extra
    if subsets := write_subsets(folder, tars):
        manifest["subsets"] = subsets
    for name in ("filtered", "notes", "licences"):
        manifest[name] = dict(sum((getattr(part, name) for part in parts), Counter()).most_common())
    with atomic_file(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())
    return manifest


def _write_quarantine(folder: Path, parts: list[ShardPart]) -> None:
    with atomic_file(folder / "quarantine.jsonl") as file:
        for part in parts:
            for key, reason in part.rejected:
                line = json.dumps({"key": key, "split": part.split, "reason": reason})
                file.write(line.encode() + b"\n")


def _check_quarantine(folder: Path, source: str, counts: dict[str, Counter], parts: list[ShardPart], limit: float) -> None:
    total, quarantined = (sum(split_counts[name] for split_counts in counts.values()) for name in ("in", "quarantined"))
    if not quarantined or quarantined <= limit * total:
        return
    reasons = Counter(reason.partition(":")[0] for part in parts for _, reason in part.rejected)
    reason, times = reasons.most_common(1)[0]
    raise UserError(
        f"source '{source}': {quarantined:,} of {total:,} rows ({quarantined / total:.1%}) are quarantined, quarantine_limit={limit} "
        f"allows {limit:.0%}; the most frequent reason is '{reason}' ({times:,} rows), all are listed in "
        f"{folder / 'quarantine.jsonl'}; fix the raw data, or raise quarantine_limit=, and run the same command again"
    )
