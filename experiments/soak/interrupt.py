"""The mini run, interrupted at random, against one that was left alone.

Each runs in its own copy of the tree. Every other interruption is SIGKILL, which nothing can catch; the rest are Ctrl-C.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.soak.trial import Row

TREE = ("src", "data_prep", "conf", "experiments")


def trial(model: str, *, kills: int = 6, seed: int = 0, small: bool = False) -> list[Row]:
    """`model` is not asked: each side makes its own."""
    extra = ["small"] if small else []
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        alone, disturbed = (copy(Path(scratch) / name) for name in ("alone", "disturbed"))
        begun = time.perf_counter()
        code, _ = run(alone, extra, None, None)
        took = time.perf_counter() - begun
        assert code == 0, f"the mini run ended with code {code}"
        for number in range(kills):
            lives, how = rng.uniform(0.1, 0.4) * took, (signal.SIGKILL, signal.SIGINT)[number % 2]
            code, last = run(disturbed, extra, lives, how)
            print(f"{how.name} after {lives:4.0f} s in: {last}" if code else "ended before it was interrupted", flush=True)
        code, last = run(disturbed, extra, None, None)
        differing = differences(alone / "outputs/mini", disturbed / "outputs/mini")
    print(f"differing: {', '.join(differing) or 'nothing'}")
    return [
        Row(f"mini run interrupted {kills} times: exit code", str(code), "0", code == 0),
        Row("predictions and scores that differ from one left alone", str(len(differing)), "0", not differing),
    ]


def copy(folder: Path) -> Path:
    for name in TREE:
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(folder: Path, extra: list[str], seconds: float | None, how: signal.Signals | None) -> tuple[int, str]:
    """Exit code, and the last command that was begun; after `seconds` the whole process group gets the signal `how`."""
    log = folder / "log.txt"
    with log.open("w") as output:
        command = [sys.executable, "-m", "experiments.mini.run", *extra]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            assert how is not None
            os.killpg(process.pid, how)
            process.wait()
    begun = [line for line in log.read_text().splitlines() if line.startswith("$ python -m")]
    return process.returncode, begun[-1].removeprefix("$ python -m ").split()[0] if begun else ""


def differences(left: Path, right: Path) -> list[str]:
    """Prediction files and metrics (`vqa/`, `transfer/`) that are not the same on both sides."""
    files = {path.relative_to(folder) for folder in (left, right) for path in folder.glob("predictions/*.jsonl")}
    differing = [str(name) for name in sorted(files) if content(left / name) != content(right / name)]
    a, b = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (left, right))
    keys = sorted(key for key in a.keys() | b.keys() if key.startswith(("vqa/", "transfer/")))
    assert keys, "no scores to compare"
    return differing + [key for key in keys if a.get(key) != b.get(key)]


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
