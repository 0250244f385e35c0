"""Runs each command on a disk that is full after a part of what it writes, then makes space and repeats the same command.

The disk is a tmpfs that this trial mounts, which needs root. Without the right to mount, no file may grow beyond a limit (RLIMIT_FSIZE).
"""

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.soak import forked, small_run
from experiments.soak.trial import Row

SHARES = (0.0, 0.5, 0.95)  # of what a command writes, for which there is space
PAGE = 4096  # bytes; a tmpfs counts whole pages
PARTIAL = re.compile(r"(\.tmp|\.part|\.partial\.json)$")


def trial(model: str) -> list[Row]:
    """`model` is not used."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        forked.import_libraries()
        forked.call(lambda: small_run.write_phantoms(folder / "raw", (*small_run.PHANTOMS, small_run.CLASSIFICATION)), folder)
        forked.call(lambda: small_run.write_language(folder / "language"), folder)
        reference = folder / "reference"
        reference.mkdir()
        (reference / "questions.jsonl").write_text(
            "".join(json.dumps({"id": str(n), "question": "which organ?"}) + "\n" for n in range(60))
        )
        mounted = can_mount(folder / "disk")
        print("disk: a tmpfs" if mounted else "disk: RLIMIT_FSIZE, because this process may not mount a tmpfs", flush=True)
        for name, words in commands(folder / "raw", folder / "language").items():
            before = folder / "before"
            shutil.copytree(reference, before)
            code, output = forked.run(words, reference, folder / "log.txt")
            assert code == 0, f"{words[0]}: exit code {code}: {output[-2000:]}"
            for share in SHARES:
                faults = fill(words, before, reference, folder / "disk", share=share, mounted=mounted, log=folder / "log.txt")
                rows.append(Row(f"{name}, space for {share:.0%} of its files", "; ".join(faults) or "continued", "continued", not faults))
                print(rows[-1].line(), flush=True)
            shutil.rmtree(before)
    return [*rows, Row("full disk: a tmpfs" if mounted else "full disk: RLIMIT_FSIZE", "", "")]


def commands(raw: Path, language: Path) -> dict[str, list[str]]:
    """Name -> command, in an order in which each finds what it needs."""
    sources = list(small_run.PHANTOMS)
    transfer = ["encoder=run:small", f"benchmark={small_run.CLASSIFICATION}", f"raw={raw}", "resamples=100"]
    return {
        "shards": small_run.build(raw, sources),
        "audit": ["data_prep.audit", "out=shards", f"raw={raw}"],
        "train": small_run.train(sources, language),
        "sweep": ["src.train", "-m", *small_run.train(sources, language, "optim.steps=5", "name=sweep", "seed=0,1")[1:]],
        "evaluate": small_run.EVALUATE,
        "transfer": ["src.transfer", *transfer],
        "report": ["src.report", "runs=small"],
        "export": ["src.export", "run=small", "out=exports/small"],
        "ask": ["src.ask", "model=exports/small", "batch=questions.jsonl", "out=answers.jsonl", "max_new_tokens=8"],
    }


def fill(words: list[str], before: Path, after: Path, disk: Path, *, share: float, mounted: bool, log: Path) -> list[str]:
    """The faults of a command on a full disk: no clear message, half-written files, other files than without the fault after it continued.

    `before` and `after` are the folders before and after the same command on a disk with enough space.
    """
    written = used(after) - used(before)
    space = used(before) + min(int(share * written) // PAGE * PAGE, written - PAGE)  # at least one page is missing
    with full_disk(disk, space if mounted else 0) as grow:
        shutil.copytree(before, disk, dirs_exist_ok=True, copy_function=shutil.copyfile)
        largest = max(
            path.stat().st_size for path in after.rglob("*") if path.is_file() and not (before / path.relative_to(after)).exists()
        )
        limit = None if mounted else max(64, int(share * largest))
        code, output = run_limited(words, disk, log, limit)
        faults = []
        message = [line for line in output.splitlines() if "no space is left" in line or "cannot be written" in line]
        if code == 0:
            faults.append("exit code 0")
        if not message or "Traceback" in output:
            faults.append("no clear message")
            print(output[-3000:])
        if partial := [path.name for path in disk.rglob("*") if PARTIAL.search(path.name) and path.name != f"{words[0][4:]}.partial.json"]:
            faults.append(f"left {', '.join(partial[:3])}")
        grow()
        code, output = run_limited(words, disk, log, None)
        if code:
            faults.append(f"exit code {code} with space")
            print(output[-3000:])
        if different := small_run.differences(small_run.snapshot(after), small_run.snapshot(disk)):
            faults.append(f"different: {', '.join(different[:3])}{' ...' if len(different) > 3 else ''}")
    return faults


def run_limited(words: list[str], folder: Path, log: Path, limit: int | None) -> tuple[int, str]:
    """`forked.run`; with `limit`, no file of the command may grow beyond that many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or soft, hard))
        return forked.run(words, folder, log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def used(folder: Path) -> int:
    """Bytes that the files and folders below `folder` take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def can_mount(folder: Path) -> bool:
    folder.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def full_disk(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    """A tmpfs of `size` bytes at `folder`; yields a function that makes space. With size 0, an ordinary empty folder."""
    folder.mkdir(exist_ok=True)
    options = f"size={max(size, PAGE)}"
    try:
        if size:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        yield lambda: size and subprocess.run(["mount", "-o", "remount,size=2g", folder], check=True)
    finally:
        if size:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder)
