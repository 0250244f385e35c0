"""What a run has seen of a test set: which of its training records, and of those of the runs that it continues, the audit found there."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from src.config.train import MixConfig
from src.data.datamodule import rows_digest
from src.data.remote import CacheConfig, open_shards
from src.data.shards import Shards
from src.data.train_val_split import split_source
from src.evaluation.benchmark import Benchmark
from src.runtime.errors import UserError
from src.runtime.run_folder import read_run
from src.runtime.schema import to_typed
from src.training.checkpoint import choose_checkpoint


@dataclass
class Overlap:
    """Of a run, of one of its stages or of one source: `trained_on` is None where nobody can tell, and `notes` then say why."""

    found: dict[str, int] = field(default_factory=dict)  # source -> training records that stand in the test set
    trained_on: bool | None = False
    complete: bool = True  # whether `seen` is all that was trained on
    seen: set[str] = field(default_factory=set)  # keys of the test records that stand in the records trained on
    notes: list[str] = field(default_factory=list)


def unknown(note: str, found: dict[str, int] | None = None) -> Overlap:
    return Overlap(found or {}, None, False, notes=[note])


def joined(parts: list[Overlap]) -> Overlap:
    """Trained on if any part was; else unknown if any part is."""
    answers = [part.trained_on for part in parts]
    whole = Overlap(trained_on=True if True in answers else None if None in answers else False)
    whole.complete = all(part.complete for part in parts)
    for part in parts:
        whole.found |= {source: max(count, whole.found.get(source, 0)) for source, count in part.found.items()}
        whole.seen |= part.seen
        whole.notes += [note for note in part.notes if note not in whole.notes]
    return whole


def overlaps(run: dict, checkpoint: Path, benchmarks: dict[str, str], *, outputs: str) -> dict[str, Overlap]:
    """Of each test set, given with the fingerprint of its build, what the run and those that it continues by `init=run:` have seen.

    A run has seen what the audit finds in its training split and what `mix.decontaminate` did not leave out at the time: with false, or
    because the audit came after training, which shows in other rows than those that the checkpoint says were drawn from. Nobody can tell
    where no audit has looked for this build of the test set, the shards have been built anew since, or a run is gone. Nor is it ever
    known what the public weights that a run began with were trained on.
    """
    parts: dict[str, list[Overlap]] = {benchmark: [] for benchmark in benchmarks}
    for stage in _stages(run, checkpoint, outputs):
        found = dict.fromkeys(benchmarks, unknown(stage)) if isinstance(stage, str) else _of_stage(*stage, benchmarks)
        for benchmark, one in found.items():
            parts[benchmark].append(one)
    return {benchmark: joined(found) for benchmark, found in parts.items()}


def training_overlap(run: dict, checkpoint: Path, benchmark: str, *, fingerprint: str, outputs: str) -> dict:
    """{found, trained_on, notes} of one set as in `Overlap`, and `start`: public weights that the run began with, or None."""
    found = overlaps(run, checkpoint, {benchmark: fingerprint}, outputs=outputs)[benchmark]
    vision = run["vision"]
    start = None if vision["format"] == "scratch" else vision["path"] or vision["architecture"]
    return {"found": found.found, "trained_on": found.trained_on, "notes": found.notes, "start": start}


def mark(test: Benchmark, found: Overlap) -> None:
    """Gives items `seen`: true where the image, or the text where there is none, was trained on; false only where all that was is known."""
    for item in test.items:
        if item["id"] in found.seen:
            item["seen"] = True
        elif found.complete:
            item["seen"] = False


def _stages(run: dict, checkpoint: Path, outputs: str) -> Iterator[tuple[dict, Path] | str]:
    """The run and, one after the other, those whose weights it continued; a note in place of one that is gone."""
    yield run, checkpoint
    before = {run.get("name")}
    while run.get("init"):
        name = run["init"].removeprefix("run:")
        try:
            folder, run = read_run(outputs, name)
            checkpoint = choose_checkpoint(folder, "best")
        except UserError:
            yield f"run '{name}', whose weights were continued, is gone from {outputs}/"
            return
        if name in before:
            yield f"run '{name}', whose weights were continued, has been trained anew since"
            return
        before.add(name)
        yield run, checkpoint


def _of_stage(run: dict, checkpoint: Path, benchmarks: dict[str, str]) -> dict[str, Overlap]:
    mix, data = to_typed(MixConfig, DictConfig(run["mix"])), run["data"]
    cache = CacheConfig(data.get("cache", CacheConfig.folder), data.get("cache_gb", CacheConfig.gigabytes))
    then = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("DataModule", {}).get("fingerprint", {})
    parts: dict[str, list[Overlap]] = {benchmark: [] for benchmark in benchmarks}
    for source in mix.drawn:
        try:
            shards = open_shards(data["root"], source, cache=cache)
        except UserError:
            shards = None
        for benchmark, fingerprint in benchmarks.items():
            if shards is None:
                one = unknown(f"{source} is not in data.root={data['root']}; put its shards there")
            else:
                one = _of_source(source, shards, then, mix, data.get("validate", 0), benchmark, fingerprint)
            one.notes = [f"run '{run.get('name')}': {note}" for note in one.notes]
            parts[benchmark].append(one)
    return {benchmark: joined(found) for benchmark, found in parts.items()}


def _of_source(source: str, shards: Shards, then: dict, mix: MixConfig, validate: int, benchmark: str, fingerprint: str) -> Overlap:
    """`then` is the fingerprint of the data that was recorded at training."""
    audit = shards.audit
    if audit is None:
        return unknown(f"{source} has no audit of its present build; run `make audit`")
    if benchmark not in audit["checked"]:
        return unknown(f"the audit of {source} has not looked for {benchmark}; run `make audit` where it is on disk")
    count = _count(shards, benchmark)
    found = {source: count} if count else {}
    if audit["fingerprints"][benchmark] != fingerprint:
        return unknown(f"the audit of {source} has looked for another build of {benchmark}; run `make audit`", found)
    if then.get("shards", {}).get(source) != shards.manifest["fingerprint"]:
        return unknown(f"the shards of {source} are not known to be those that were trained on", found)
    if not count:
        return Overlap()
    seen = set(audit["test_records_in_train"].get(benchmark, []))
    if not mix.decontaminate:
        return Overlap(found, True, seen=seen, notes=[f"{source} was trained on with mix.decontaminate=false"])
    if "records" not in then:
        return unknown(f"the checkpoint does not say which records of {source} were trained on", found)
    if then["records"][source] == rows_digest(split_source(shards, decontaminate=True, val_samples=validate)[0]):
        return Overlap(found)
    return Overlap(found, True, seen=seen, notes=[f"the audit of {source} has changed since the training, which left out other records"])


def _count(shards: Shards, benchmark: str) -> int:
    """Training records that the audit found in this test set."""
    leaking = np.setdiff1d(shards.rows("train"), shards.rows("train", decontaminate=True)).tolist()
    names = shards.arrow("leaks_into")
    return sum(benchmark in names[row].as_py().split(",") for row in leaking)
