"""One line of the table, and a demo to try."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from src.demo import free_port


@dataclass
class Row:
    """What was found and what is allowed; `kept` None where nothing is promised."""

    name: str
    found: str
    bound: str = ""
    kept: bool | None = None

    def line(self) -> str:
        said = {None: "", True: "ok", False: "BROKEN"}[self.kept]
        return f"{self.name:<58} {self.found:>12}   {self.bound:<32} {said}".rstrip()


@contextlib.contextmanager
def demo(model: str) -> Iterator[tuple[str, psutil.Process, list[Row]]]:
    """(address, process, how long it took to start) of a demo in a process of its own, loaded and ready to answer."""
    port, begun = free_port("127.0.0.1"), time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "src.demo", f"model={model}", f"port={port}"], stdout=log)
        url = f"http://127.0.0.1:{port}/"
        try:
            opened = until(lambda: httpx.get(url, timeout=60).status_code == 200, process) - begun
            worked = psutil.Process(process.pid).cpu_times()
            loaded = until(lambda: "is loaded" in Path(f"/proc/self/fd/{log.fileno()}").read_text(), process) - begun
            rows = [
                Row("demo: first page after, s", f"{opened:.1f}", "10", opened <= 10),
                Row("demo: processor time until then, s", f"{worked.user + worked.system:.1f}"),
                Row("demo: model loaded after, s", f"{loaded:.1f}"),
            ]
            yield url, psutil.Process(process.pid), rows
        finally:
            process.terminate()
            process.wait(30)


def until(condition, process: subprocess.Popen, *, seconds: float = 900) -> float:
    """The moment at which `condition` holds."""
    end = time.perf_counter() + seconds
    while True:
        assert process.poll() is None, "the demo ended"
        assert time.perf_counter() < end, "the demo did not start"
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return time.perf_counter()
        time.sleep(0.05)
