"""Whether a benchmark is unseen: which training samples of a run, and of the runs it continues, the audit found in its test split."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from omegaconf import DictConfig

from src.config import Data, Mix, typed
from src.data.module import fingerprint
from src.data.record import SPLITS
from src.data.shards import Shards
from src.errors import UserError
from src.run import read_run
from src.training.checkpoint import choose


def overlap(run: dict, checkpoint: Path, benchmark: str, *, outputs: str) -> dict:
    """{found: samples per source, trained_on: bool or None, start: public weights that the run began with, or None}.

    `found` is from the `leaks_into` column of the shards of the mix, of the run and of those that it continues by `init=run:`.
    `trained_on` is None where nobody can tell: no audit has looked for this benchmark, the shards have been built anew since, or a run
    is gone. What the weights in `start` were trained on is never known.
    """
    found: dict[str, int] = {}
    answers = []
    for stage in _stages(run, checkpoint, outputs):
        here, answer = _asked(*stage, benchmark) if stage else ({}, None)
        found |= {source: max(count, found.get(source, 0)) for source, count in here.items()}
        answers.append(answer)
    vision = run["vision"]
    start = None if vision["format"] == "scratch" else vision["path"] or vision["architecture"]
    return {"found": found, "trained_on": True if True in answers else None if None in answers else False, "start": start}


def _stages(run: dict, checkpoint: Path, outputs: str) -> Iterator[tuple[dict, Path] | None]:
    """The run and, one after the other, those whose weights it continued; None for one that is gone."""
    yield run, checkpoint
    while run.get("init"):
        try:
            folder, run = read_run(outputs, run["init"].removeprefix("run:"))
            checkpoint = choose(folder, "best")
        except UserError:
            yield None
            return
        yield run, checkpoint


def _asked(run: dict, checkpoint: Path, benchmark: str) -> tuple[dict[str, int], bool | None]:
    """Samples found per source, and whether this run was trained on them: with mix.decontaminate=false, or where an audit came after it,
    which shows in other rows than those that the checkpoint says were drawn from."""
    root, mix = Path(run["data"]["root"]), typed(Mix, DictConfig(run["mix"]))
    if not all(_audited(root / source, benchmark) for source in mix.drawn):
        return {}, None
    shards = {source: Shards(root / source) for source in mix.drawn}
    found = {source: count for source, opened in shards.items() if (count := _count(opened, benchmark))}
    then = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("DataModule", {}).get("fingerprint", {})
    if then.get("shards") != {source: opened.manifest["fingerprint"] for source, opened in shards.items()}:
        return found, None
    if not found or not mix.decontaminate:
        return found, bool(found)
    if "records" not in then:
        return found, None
    now = fingerprint(shards, mix, seed=0, data=typed(Data, DictConfig(run["data"])))["records"]
    return found, any(then["records"][source] != now[source] for source in found)


def _audited(folder: Path, benchmark: str) -> bool:
    path = folder / "audit.json"
    return path.exists() and benchmark in json.loads(path.read_bytes())["checked"]


def _count(shards: Shards, benchmark: str) -> int:
    names = pa.array(shards.column("leaks_into")[shards.column("split") == SPLITS.index("train")], pa.string())
    return int(pc.sum(pc.match_substring_regex(names, rf"(^|,){re.escape(benchmark)}(,|$)")).as_py() or 0)
