"""Whether a benchmark is unseen: which training samples of a run the audit found in its test split."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig

from src.config import Mix, typed
from src.data.record import SPLITS
from src.data.shards import Shards


def overlap(run: dict, benchmark: str) -> dict:
    """{found: samples per source, trained_on: bool}, from the `leaks_into` column of the shards of a run's mix.

    `trained_on` is None where no audit of the mix has looked for this benchmark, or the shards are not there to be asked. Samples
    that leak are trained on only with mix.decontaminate=false.
    """
    root, sources = Path(run["data"]["root"]), list(typed(Mix, DictConfig(run["mix"])).drawn)
    if not all(_audited(root / source, benchmark) for source in sources):
        return {"found": {}, "trained_on": None}
    found = {source: count for source in sources if (count := _count(Shards(root / source), benchmark))}
    return {"found": found, "trained_on": bool(found) and not run["mix"]["decontaminate"]}


def _audited(folder: Path, benchmark: str) -> bool:
    path = folder / "audit.json"
    return path.exists() and benchmark in json.loads(path.read_bytes())["checked"]


def _count(shards: Shards, benchmark: str) -> int:
    names = pa.array(shards.column("leaks_into")[shards.column("split") == SPLITS.index("train")], pa.string())
    return int(pc.sum(pc.match_substring_regex(names, rf"(^|,){benchmark}(,|$)")).as_py() or 0)
