"""Overlap of test sets with the data that a run and its ancestors (`init=run:NAME`) were trained on, from the audits of the shards."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from src.config.train import MixConfig
from src.data.fingerprint import rows_digest
from src.data.lineage import lineage, missing_parent
from src.data.remote import CacheConfig, open_shards
from src.data.shards import Shards
from src.data.subsets import select_subsets
from src.data.train_val_split import split_source
from src.evaluation.benchmark import Benchmark
from src.runtime.errors import UserError
from src.runtime.run_folder import read_config
from src.runtime.schema import to_typed


@dataclass
class Overlap:
    """Overlap of one test set with the training data of a source, of a run, or of a run and its ancestors.

    `trained_on` is None where the overlap is unknown; `notes` give the reasons.
    """

    records: dict[str, int] = field(default_factory=dict)  # source -> number of its training records that are in the test set
    trained_on: bool | None = False
    complete: bool = True  # whether `seen` holds every test record that was trained on
    seen: set[str] = field(default_factory=set)  # keys of test records that were trained on
    notes: list[str] = field(default_factory=list)


def unknown_overlap(note: str, records: dict[str, int] | None = None) -> Overlap:
    return Overlap(records or {}, None, False, notes=[note])


def merge_overlaps(parts: list[Overlap]) -> Overlap:
    """The overlap of all parts: trained on if any part was, else unknown if any part is unknown."""
    states = [part.trained_on for part in parts]
    merged = Overlap(trained_on=True if True in states else None if None in states else False)
    merged.complete = all(part.complete for part in parts)
    for part in parts:
        merged.records |= {source: max(count, merged.records.get(source, 0)) for source, count in part.records.items()}
        merged.seen |= part.seen
        merged.notes += [note for note in part.notes if note not in merged.notes]
    return merged


def checkpoint_overlaps(checkpoint: Path, test_sets: dict[str, str]) -> dict[str, Overlap]:
    """Per test set, the overlap with the data of the run that wrote `checkpoint` and of all its ancestors.

    `test_sets` maps the name of each test set to the fingerprint of its build. A run was trained on the records that the audit found in
    its training split and that `mix.decontaminate` did not remove: with false, or because the audit came after the training. The latter
    is visible in the rows, which then differ from those that the fingerprint of the training data states. The overlap is unknown where
    no audit has compared this build of the test set, the shards were rebuilt, or the record of an ancestor is missing. What the public
    weights at the start were trained on is never known.
    """
    records = lineage(checkpoint.parents[1])
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    # An unfinished run without lineage.json states the fingerprint of its data only in the checkpoint.
    records[0]["fingerprint"] = state.get("DataModule", {}).get("fingerprint") or records[0]["fingerprint"]
    parts = [_record_overlaps(record, test_sets) for record in records]
    if parent := missing_parent(records):
        note = (
            f"run '{records[-1]['name']}': its init={parent} has no training record, because the folder is missing or was trained anew; "
            "put the original folder back"
        )
        parts.append(dict.fromkeys(test_sets, unknown_overlap(note)))
    return {name: merge_overlaps([part[name] for part in parts]) for name in test_sets}


def training_overlap(checkpoint: Path, test_set: str, *, fingerprint: str) -> dict:
    """{found, trained_on, notes} of one test set, as in `Overlap`, and `start`: the public weights at the start of the run, or None."""
    overlap = checkpoint_overlaps(checkpoint, {test_set: fingerprint})[test_set]
    vision = read_config(checkpoint.parents[1])["vision"]
    start = None if vision["format"] == "scratch" else vision["path"] or vision["architecture"]
    return {"found": overlap.records, "trained_on": overlap.trained_on, "notes": overlap.notes, "start": start}


def mark_items(test: Benchmark, overlap: Overlap) -> None:
    """Sets `seen` of the items: true where the image (or the text of a question without image) was trained on.

    It is false only where the overlap is complete; else the other items have no `seen`.
    """
    for item in test.items:
        if item["id"] in overlap.seen:
            item["seen"] = True
        elif overlap.complete:
            item["seen"] = False


def _record_overlaps(record: dict, test_sets: dict[str, str]) -> dict[str, Overlap]:
    """Per test set, the overlap with the data of one training record of `src/data/lineage.py`."""
    config = record["config"]
    mix, data = to_typed(MixConfig, DictConfig(config["mix"])), config["data"]
    cache = CacheConfig(data.get("cache", CacheConfig.folder), data.get("cache_gb", CacheConfig.gigabytes))
    parts: dict[str, list[Overlap]] = {name: [] for name in test_sets}
    for source in mix.sampling_weights:
        try:
            shards = open_shards(data["root"], source, cache=cache)
        except UserError:
            shards = None
        for name, fingerprint in test_sets.items():
            if shards is None:
                overlap = unknown_overlap(f"{source} is not in data.root={data['root']}; put its shards there")
            else:
                overlap = _source_overlap(source, shards, record["fingerprint"], mix, data.get("val_samples", 0), name, fingerprint)
            overlap.notes = [f"run '{record['name']}': {note}" for note in overlap.notes]
            parts[name].append(overlap)
    return {name: merge_overlaps(overlaps) for name, overlaps in parts.items()}


def _source_overlap(
    source: str, shards: Shards, trained: dict, mix: MixConfig, val_samples: int, test_set: str, fingerprint: str
) -> Overlap:
    """`trained` is the fingerprint of the training data, `fingerprint` that of the test set."""
    audit = shards.audit
    if audit is None:
        return unknown_overlap(f"{source} has no audit of its present build; run `make audit`")
    if test_set not in audit["checked"]:
        return unknown_overlap(f"the audit of {source} did not check {test_set}; put its files on disk and run `make audit`")
    count = _leaking_records(shards, test_set, shards.rows("train"))
    records = {source: count} if count else {}
    if audit["fingerprints"][test_set] != fingerprint:
        return unknown_overlap(f"the audit of {source} checked another build of {test_set}; run `make audit`", records)
    if trained.get("shards", {}).get(source) != shards.manifest["fingerprint"]:
        return unknown_overlap(f"the shards of {source} are not known to be those of the training", records)
    if not count:
        return Overlap()
    seen = set(audit["test_records_in_train"].get(test_set, []))
    if not mix.decontaminate:
        rows = select_subsets(shards, shards.rows("train"), exclude=mix.selection(source)["exclude"])
        if not _leaking_records(shards, test_set, rows):
            return Overlap(records)
        return Overlap(records, True, seen=seen, notes=[f"{source} was trained on with mix.decontaminate=false"])
    if "records" not in trained:
        return unknown_overlap(f"the training record does not state which records of {source} were used", records)
    if trained["records"][source] == rows_digest(split_source(shards, **mix.selection(source), val_samples=val_samples)[0]):
        return Overlap(records)
    return Overlap(records, True, seen=seen, notes=[f"the audit of {source} changed after the training, which excluded other records"])


def _leaking_records(shards: Shards, test_set: str, rows: np.ndarray) -> int:
    """Number of the training records `rows` that the audit found in this test set."""
    leaking = np.setdiff1d(rows, shards.rows("train", decontaminate=True)).tolist()
    names = shards.arrow("leaks_into")
    return sum(test_set in names[row].as_py().split(",") for row in leaking)
