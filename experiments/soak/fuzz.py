"""Builds shards from 1,000 damaged folders of raw data.

Each build runs in a forked process with a time limit. It must end with shards whose counts add up and whose records can be read, or with
one clear message; every row that is set aside must have a clear reason. Phantoms cover all readers; `raw=` adds parts of real datasets.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import traceback
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from data_prep.build.finalize import COUNTS
from data_prep.build.source import BuildConfig
from data_prep.phantom.writers import WRITERS
from data_prep.shards import build_all
from data_prep.sources import find_source
from experiments.soak.mutations import IMAGES, mutate
from experiments.soak.raw_trees import MNIST, OWN, copy_part, write_phantom
from experiments.soak.trial import Row
from src.data.record import SPLITS
from src.data.shards import Shards
from src.runtime.errors import UserError
from src.runtime.progress import Progress
from src.runtime.tables import print_table

TIME_LIMIT = 120  # seconds of a build, which takes a fraction of a second on an idle core
WORKERS = 2  # builds at a time
REAL_WEIGHT = 4  # trees of a real dataset per tree of a phantom
FAULTS = ("crash", "no end", "counts", "unclear")
EXCEPTION_TEXT = re.compile(
    r"\b[A-Z]\w*(Error|Warning)\b|object has no attribute|NoneType|not subscriptable|not iterable|Traceback|<class|0x[0-9a-f]{6,}"
    r"|unhashable|codec can't|out of range|invalid literal|positional argument|unsupported operand|must be str"
)


def trial(model: str, *, raw: str = "", trees: int = 1000, seed: int = 0) -> list[Row]:
    """`model` is not used. `raw` is a folder of real raw datasets, one folder each."""
    torch.set_num_threads(1)  # a fork does not inherit the threads of a pool
    with tempfile.TemporaryDirectory() as scratch:
        intact = write_intact(Path(scratch) / "intact", Path(raw) if raw else None)
        schedule = [name for name, (_, weight) in intact.items() for _ in range(weight)]
        results, running = [], deque[tuple[str, DamagedTree]]()
        for number in Progress(range(trees + WORKERS), unit="tree", desc="fuzz", total=trees):
            if number >= WORKERS and running:
                label, tree = running.popleft()
                results.append(result := tree.result())
                for fault in result["faults"]:
                    print(f"tree {label}, {result['mutations']}: {fault}: {result['detail']}", flush=True)
            if number < trees:
                name = schedule[number % len(schedule)]
                running.append((f"{seed}-{number}, {name}", DamagedTree(intact[name][0], f"{seed}-{number}")))
    print_table(table(results))
    faults = Counter(fault for result in results for fault in result["faults"])
    names = {"crash": "crashes", "no end": f"builds that take more than {TIME_LIMIT} s", "counts": "builds whose counts do not add up"}
    names["unclear"] = "reasons and messages that are not clear"
    bounds = [Row(f"{trees} damaged raw folders: {names[fault]}", str(faults[fault]), "0", not faults[fault]) for fault in FAULTS]
    return [*bounds, Row("damaged raw folders of real datasets", str(sum(result["real"] for result in results)))]


def write_intact(folder: Path, raw: Path | None) -> dict[str, tuple[Path, int]]:
    """Name -> (intact folder, number of its trees in a round)."""
    intact = {}
    phantoms = [name for name in (*WRITERS, *OWN) if name not in MNIST]
    sources: list[tuple[str, Path, Callable[[Path], None], int]] = [(name, folder / name, write_phantom, 1) for name in phantoms]
    for source in sorted(path for path in raw.iterdir() if path.is_dir()) if raw else ():
        sources.append((f"real:{source.name}", folder / "real" / source.name, partial(copy_part, source), REAL_WEIGHT))
    for name, path, write, weight in Progress(sources, unit="folder", desc="intact folders"):
        result = Child(lambda path=path, write=write: write(path) or build_tree(path, path.parent / ".shards")).result()
        assert result["outcome"] == "built", f"{name} cannot be built before it is damaged: {result}"
        shutil.rmtree(path.parent / ".shards")
        path.with_name(path.name + ".rows").write_text(str(result["counts"]["in"]))
        intact[name] = (path, weight)
    return intact


class DamagedTree:
    """A damaged copy of an intact folder, whose build starts at once. The seed repeats it."""

    def __init__(self, intact: Path, seed: str):
        self.intact, self.scratch = intact, tempfile.TemporaryDirectory()
        copy, self.mutations = Path(self.scratch.name) / "raw" / intact.name, Path(self.scratch.name) / "mutations.json"

        def build() -> dict[str, Any]:
            shutil.copytree(intact, copy, symlinks=True)
            applied = mutate(copy, random.Random(seed))
            self.mutations.write_text(json.dumps([f"{mutation} {path}" for mutation, path in applied]))
            same_rows = all(path.suffix.lower() in IMAGES for _, path in applied)
            return build_tree(copy, Path(self.scratch.name) / "out") | {"same_rows": same_rows}

        self.child = Child(build)

    def result(self) -> dict[str, Any]:
        """Outcome, counts, mutations and faults of the build."""
        result = self.child.result()
        result["mutations"] = ", ".join(json.loads(self.mutations.read_text())) if self.mutations.exists() else "none"
        self.scratch.cleanup()
        rows = int(self.intact.with_name(self.intact.name + ".rows").read_text())
        result["reader"] = find_source(self.intact.name, self.intact.parent).reader
        rows_are_images = result["reader"] in ("classification", "folder")
        if result["outcome"] == "built" and result["same_rows"] and not rows_are_images and result["counts"]["in"] != rows:
            result["faults"].append("counts")
            result["detail"] = f"{result['counts']['in']} rows instead of {rows}, although only images are damaged"
        return result | {"real": self.intact.parent.name == "real"}


def build_tree(raw: Path, out: Path) -> dict[str, Any]:
    """Builds the shards of one source and checks what was written."""
    config = BuildConfig(sources=[raw.name], raw=raw.parent, out=out, workers=1, quarantine_limit=1.0)
    try:
        manifest = build_all(config)[raw.name]
    except UserError as error:
        message = str(error)
        names = {raw.name, *(path.name for path in raw.rglob("*"))}
        clear = is_clear(message) and any(name in message for name in names)
        left = [path.name for path in out.rglob("*") if path.name.endswith(".tmp") or path.name == "manifest.json"]
        faults = ["unclear"] * (not clear) + ["counts"] * bool(left)
        return {"outcome": "rejected", "faults": faults, "detail": f"{message} {left or ''}"}
    shards, folder = Shards(out / raw.name), out / raw.name
    counts = {name: sum(split[name] for split in manifest["counts"].values()) for name in COUNTS}
    reasons = [json.loads(line)["reason"] for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    unclear = [reason for reason in [*reasons, *manifest["filtered"]] if not is_clear(reason)]
    records = Counter(shards[row].split for row in range(len(shards)))
    wrong = {
        "sum": counts["in"] != sum(counts[name] for name in COUNTS[1:]),
        "records": any(records[split] != manifest["counts"][split]["written"] for split in SPLITS),
        "quarantine.jsonl": len(reasons) != counts["quarantined"],
        "filtered": sum(manifest["filtered"].values()) != counts["filtered"],
    }
    wrong_names = [name for name, value in wrong.items() if value]
    faults = ["counts"] * bool(wrong_names) + ["unclear"] * bool(unclear)
    return {"outcome": "built", "counts": counts, "faults": faults, "detail": "; ".join([*wrong_names, *unclear[:3]])}


def is_clear(reason: str) -> bool:
    """Whether a reason is one line that begins with a class of reasons and holds no text of a Python exception."""
    return bool(re.match(r"[\w'/]", reason)) and len(reason) <= 1000 and "\n" not in reason and not EXCEPTION_TEXT.search(reason)


class Child:
    """`work` in a forked process."""

    def __init__(self, work: Callable[[], dict[str, Any]]):
        self.receiver, sender = get_context("fork").Pipe(duplex=False)
        self.process = get_context("fork").Process(target=_run, args=(work, sender))
        self.process.start()
        sender.close()

    def result(self) -> dict[str, Any]:
        """The result of `work`, or `crash` or `no end` as its outcome and fault."""
        result = None
        if self.receiver.poll(TIME_LIMIT):
            with contextlib.suppress(EOFError):
                result = self.receiver.recv()
        else:
            self.process.kill()
            result = {"outcome": "no end", "faults": ["no end"], "detail": f"after {TIME_LIMIT} s"}
        self.process.join()
        if result is None:
            code = self.process.exitcode or 0
            died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            result = {"outcome": "crash", "faults": ["crash"], "detail": died}
        return result


def _run(work: Callable[[], dict[str, Any]], sender: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        result = work()
    except BaseException:
        result = {"outcome": "crash", "faults": ["crash"], "detail": traceback.format_exc()[-1500:]}
    sender.send(result)


def table(results: list[dict]) -> Table:
    """A line per reader: trees, outcomes, and the sums of the counts of its builds."""
    numbers = ("trees", "rejected", "built", *("rows", "records", "quarantined", "duplicates", "filtered"), *FAULTS)
    output = Table("reader", *(Column(name, justify="right") for name in numbers), box=None, pad_edge=False)
    for reader in [*sorted({result["reader"] for result in results}), "all"]:
        chosen = [result for result in results if reader in (result["reader"], "all")]
        outcomes = Counter(result["outcome"] for result in chosen)
        counts = Counter[str]()
        for result in chosen:
            counts.update(result.get("counts", {}))
        faults = Counter(fault for result in chosen for fault in result["faults"])
        cells = [len(chosen), outcomes["rejected"], outcomes["built"]]
        cells += [counts[name] for name in COUNTS] + [faults[name] for name in FAULTS]
        output.add_row(reader, *(f"{cell:,}" for cell in cells))
    return output
