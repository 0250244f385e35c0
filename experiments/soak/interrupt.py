"""Compares a mini run that is interrupted at random times with an uninterrupted one.

Each runs in its own copy of the tree. Interruptions alternate between SIGKILL, which no process can handle, and SIGINT (Ctrl-C).
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
    """`model` is not used: both sides train their own."""
    args = ["small"] if small else []
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        reference, interrupted = (copy_tree(Path(scratch) / name) for name in ("reference", "interrupted"))
        started = time.perf_counter()
        code, _ = run_mini(reference, args)
        duration = time.perf_counter() - started
        assert code == 0, f"the mini run ended with code {code}"
        for number in range(kills):
            timeout, sig = rng.uniform(0.1, 0.4) * duration, (signal.SIGKILL, signal.SIGINT)[number % 2]
            code, command = run_mini(interrupted, args, timeout, sig)
            print(f"{sig.name} after {timeout:4.0f} s in: {command}" if code else "ended before it was interrupted", flush=True)
        code, _ = run_mini(interrupted, args)
        differences = compare_runs(reference / "outputs/mini", interrupted / "outputs/mini")
    print(f"differences: {', '.join(differences) or 'none'}")
    return [
        Row(f"mini run interrupted {kills} times: exit code", str(code), "0", code == 0),
        Row("predictions and scores that differ", str(len(differences)), "0", not differences),
    ]


def copy_tree(folder: Path) -> Path:
    """Copies the code and the configuration into `folder`."""
    for name in TREE:
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_mini(folder: Path, args: list[str], timeout: float | None = None, sig: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """(exit code, last command that started). After `timeout` seconds the process group receives `sig`."""
    log = folder / "log.txt"
    with log.open("w") as output:
        command = [sys.executable, "-m", "experiments.mini.run", *args]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, sig)
            process.wait()
    commands = [line for line in log.read_text().splitlines() if line.startswith("$ python -m")]
    return process.returncode, commands[-1].removeprefix("$ python -m ").split()[0] if commands else ""


def compare_runs(left: Path, right: Path) -> list[str]:
    """Names of the prediction files and of the metrics (`vqa/`, `transfer/`) that differ."""
    files = {path.relative_to(folder) for folder in (left, right) for path in folder.glob("predictions/*.jsonl")}
    differences = [str(name) for name in sorted(files) if read_bytes(left / name) != read_bytes(right / name)]
    a, b = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (left, right))
    keys = sorted(key for key in a.keys() | b.keys() if key.startswith(("vqa/", "transfer/")))
    assert keys, "no scores to compare"
    return differences + [key for key in keys if a.get(key) != b.get(key)]


def read_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
