"""Seconds until a command shows its help, serves the first page of the demo, or reports a mistake while every core is busy."""

import contextlib
import multiprocessing
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from experiments.bench.measurement import Measurement, single
from src.config.train import TrainConfig
from src.runtime.cli import compose
from src.runtime.run_folder import open_run
from src.runtime.schema import to_plain, to_typed

CORES = 2
HELP = ("train", "evaluate", "transfer", "export", "plan", "report", "ask", "demo")
# command and overrides with a mistake in a key, a value, a file of a config group, a path or a file
MISTAKES = (
    ("train", "+experiment=mini", "optim.stps=3"),
    ("train", "+experiment=mini", "optim.steps=-3"),
    ("train", "+experiment=mni"),
    ("train", "+experiment=mini", "data.root=nowhere"),
    ("train", "+experiment=mini", "+trainer.extra.fast_dev_rn=1"),
    ("train", "+experiment=mini", "mix.exclude={nowhere:[a]}"),
    ("plan", "+experiment=mini", "optim.stps=3"),
    ("evaluate", "run=nowhere"),
    ("evaluate", "run=made", "benchmarks=[nowhere]"),
    ("evaluate", "predictions=nowhere.jsonl"),
    ("transfer", "encoder=nowhere", "benchmarks=nowhere"),
    ("transfer", "encoder=biomedclip", "benchmarks=breastmnist", "raw=nowhere"),
    ("transfer", "encoder=biomedclip", "benchmarks=paper_eight", "raw=nowhere"),
    ("export", "run=made", "out=exported", "parts=[hff]"),
    ("export", "run=made", "out=exported", "push.repository=someone/model"),
    ("report", "runs=nowhere"),
    ("ask", "model=run:nowhere", "question=What?"),
    ("demo", "model=run:nowhere"),
)


def measure(cores: int = CORES) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as outputs:
        write_run(Path(outputs))
        helps = {f"{command} --help": time_command(command, ["--help"], code=0) for command in HELP}
        yield slowest("startup_help", helps, target="<= 2")
        yield single("startup_demo_page", time_demo(outputs), "s until the first page of the demo is served", target="<= 5")
        with_outputs = {words: [*words[1:], *([] if words[0] == "plan" else [f"outputs={outputs}"])] for words in MISTAKES}
        with busy_cores(cores):
            mistakes = {" ".join(words): time_command(words[0], overrides, code=2) for words, overrides in with_outputs.items()}
        yield slowest("startup_mistake", mistakes, target="<= 3")


def slowest(name: str, seconds: dict[str, float], *, target: str) -> Measurement:
    worst = max(seconds, key=lambda case: seconds[case])
    unit = f"s of wall clock, the slowest of {len(seconds)}: {worst}"
    return Measurement(name, seconds[worst], min(seconds.values()), seconds[worst], len(seconds), seconds[worst], None, unit, target)


def write_run(outputs: Path) -> None:
    """The folder of a run `made` that counts as trained; nothing that is measured here loads its weights."""
    config = to_typed(TrainConfig, compose("train", ["+experiment=mini", f"outputs={outputs}", f"data.root={outputs}", "name=made"]))
    open_run(outputs / "made", to_plain(config))
    (outputs / "made" / "train.json").write_text("{}")


def time_command(command: str, overrides: list[str], *, code: int) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", f"src.{command}", *overrides], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != code:
        raise RuntimeError(f"src.{command} {' '.join(overrides)} ended with code {done.returncode}: {done.stderr[-500:]}")
    return seconds


def time_demo(outputs: str) -> float:
    words = [sys.executable, "-m", "src.demo", "model=run:made", f"outputs={outputs}"]
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        assert demo.stdout
        address = next(line for line in demo.stdout if line.startswith("http")).split(maxsplit=1)[0]  # after notes on the data
        try:
            urllib.request.urlopen(address).read()
            return time.perf_counter() - start
        finally:
            demo.kill()


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    processes = [multiprocessing.Process(target=_count, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _count() -> None:
    number = 0
    while True:
        number += 1
