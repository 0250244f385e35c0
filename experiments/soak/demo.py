"""`python -m experiments.soak.demo run:mini`: the demo under hostile uploads and under load; prints a table, fails if a bound is broken."""

import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from gradio_client import Client, handle_file

from src.demo import free_port
from tests.test_read_image import hostile, picture

UPLOADS, CLIENTS, SECONDS = 200, 8, 120.0
SETTINGS = (32, 0, 1, 0)  # tokens, temperature, top-p, seed


def main(words: list[str]) -> None:
    model, more = words[0], words[1:]
    with started(model, more) as (url, process):
        rows = [*uploads(url), *load(url, process)]
    for name, found, bound, kept in rows:
        print(f"{name:44} {found:>14}   {bound:28} {'ok' if kept else 'BROKEN'}")
    sys.exit(not all(kept for *_, kept in rows))


@contextlib.contextmanager
def started(model: str, more: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port("127.0.0.1")
    process = subprocess.Popen([sys.executable, "-m", "src.demo", f"model={model}", f"port={port}", *more])
    url, begun = f"http://127.0.0.1:{port}/", time.perf_counter()
    try:
        while True:
            assert process.poll() is None, "the demo ended"
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{url}config").raise_for_status()
                break
            time.sleep(0.1)
        print(f"started in {time.perf_counter() - begun:.1f} s")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def uploads(url: str) -> list[tuple]:
    """Every kind of hostile file, whole, cut and with bytes flipped, under names that lead elsewhere."""
    rng, codes, silent, readable = random.Random(0), [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        kinds = [data for data, _ in hostile(Path(folder)).values()] + [picture("PNG"), picture("JPEG"), picture("WEBP")]
    names = ["a.png", "../../a.png", "/etc/a.png", "a.html", "a.svg", "DICOMDIR", "x" * 200 + ".jpg", "..\\a.png"]
    for number in range(UPLOADS):
        data = bytearray(kinds[number % len(kinds)])
        for _ in range(number // len(kinds)):
            data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        name = names[number % len(names)]
        response = httpx.post(f"{url}gradio_api/upload", files={"files": (name, bytes(data))}, timeout=60)
        codes.append(response.status_code)
        silent += response.status_code != 200 and not response.text.strip()
        if response.status_code == 200:
            served = httpx.get(f"{url}gradio_api/file={response.json()[0]}")
            readable += not served.content.startswith(b"\x89PNG") or bytes(data) == served.content
    errors = sum(code >= 500 for code in codes)
    alive = httpx.get(f"{url}config").status_code == 200
    return [
        (f"{UPLOADS} hostile uploads: answers of 500 and above", errors, "0", errors == 0),
        ("refusals without a sentence", silent, "0", silent == 0),
        ("served back as they were sent", readable, "0", readable == 0),
        ("accepted (what can be read as a picture)", codes.count(200), "", True),
        ("still alive", alive, "True", alive),
    ]


def load(url: str, process: psutil.Process) -> list[tuple]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.png"
        file.write_bytes(picture("PNG", (256, 256)))
        first = Client(url, verbose=False)
        one(first, file)
        alone = statistics.median(one(first, file)[0] for _ in range(5))
        found: list[tuple[float, str]] = []
        memory: list[float] = []
        until = time.perf_counter() + SECONDS

        def visitor() -> None:
            client = Client(url, verbose=False)
            while time.perf_counter() < until:
                found.append(one(client, file))

        visitors = [threading.Thread(target=visitor) for _ in range(CLIENTS)]
        for thread in visitors:
            thread.start()
        while time.perf_counter() < until:
            memory.append(process.memory_info().rss / 2**20)
            time.sleep(1)
        for thread in visitors:
            thread.join()
    wrong = [said for _, said in found if said and "queue is full" not in said]
    waited = statistics.median(seconds for seconds, said in found if not said)
    third = len(memory) // 3
    growth = statistics.median(memory[-third:]) - statistics.median(memory[third : 2 * third])
    bound = 1.3 * alone * CLIENTS
    print(*wrong[:3], sep="\n")
    return [
        (f"{CLIENTS} clients, {SECONDS:.0f} s: requests", len(found), "", True),
        ("errors other than 'queue is full'", len(wrong), "0", not wrong),
        ("'queue is full'", sum(bool(said) for _, said in found) - len(wrong), "", True),
        ("median answer alone, s", f"{alone:.3f}", "", True),
        ("median wait, s", f"{waited:.3f}", f"1.3 x alone x {CLIENTS} = {bound:.3f}", waited <= bound),
        ("memory of the last third over the second, MiB", f"{growth:.1f}", "20", growth <= 20),
    ]


def one(client: Client, file: Path) -> tuple[float, str]:
    """(seconds from upload to answer, what went wrong)."""
    begun = time.perf_counter()
    try:
        client.predict(handle_file(file), "which organ is shown?", [], *SETTINGS, api_name="/ask")
    except Exception as error:
        return time.perf_counter() - begun, str(error).lower()
    return time.perf_counter() - begun, ""


if __name__ == "__main__":
    main(sys.argv[1:])
