"""A row of the trials' table, and a running demo for trials that need one."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from src.demo import free_port

TREE = ("src", "data_prep", "conf", "experiments")


@dataclass
class Row:
    """A measured value and its bound. `passed` is None if the value has no bound."""

    name: str
    value: str
    bound: str = ""
    passed: bool | None = None

    def line(self) -> str:
        verdict = {None: "", True: "ok", False: "FAILED"}[self.passed]
        return f"{self.name:<58} {self.value:>12}   {self.bound:<32} {verdict}".rstrip()


@contextlib.contextmanager
def start_demo(model: str) -> Iterator[tuple[str, psutil.Process, list[Row]]]:
    """(address, process, rows with the start-up times) of a demo in a process of its own, after its model is loaded."""
    port, started = free_port("127.0.0.1"), time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "src.demo", f"model={model}", f"port={port}"], stdout=log)
        url = f"http://127.0.0.1:{port}/"
        try:
            first_page = wait_until(lambda: httpx.get(url, timeout=60).status_code == 200, process) - started
            cpu = psutil.Process(process.pid).cpu_times()
            loaded = wait_until(lambda: "is loaded" in Path(f"/proc/self/fd/{log.fileno()}").read_text(), process) - started
            rows = [
                Row("demo: first page after, s", f"{first_page:.1f}", "10", first_page <= 10),
                Row("demo: processor time until then, s", f"{cpu.user + cpu.system:.1f}"),
                Row("demo: model loaded after, s", f"{loaded:.1f}"),
            ]
            yield url, psutil.Process(process.pid), rows
        finally:
            process.terminate()
            process.wait(30)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, *, timeout: float = 900) -> float:
    """The time (`time.perf_counter`) at which `condition` became true. HTTP errors count as false.

    Raises AssertionError if the process ends first or `timeout` seconds pass.
    """
    deadline = time.perf_counter() + timeout
    while True:
        assert process.poll() is None, "the demo ended"
        assert time.perf_counter() < deadline, "the demo did not start"
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return time.perf_counter()
        time.sleep(0.05)


def copy_tree(folder: Path) -> Path:
    """Copies the code and the configuration into `folder`."""
    for name in TREE:
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
