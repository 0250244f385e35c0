"""Eight visitors who ask again as soon as they are answered, for two minutes."""

import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from gradio_client import Client, handle_file

from experiments.soak.images import picture
from experiments.soak.trial import Row, demo

CLIENTS, SECONDS = 8, 120.0
SETTINGS = (32, 0, 1, 0)  # tokens, temperature, top-p, seed
GROWTH = 20  # MiB that count as flat


def trial(model: str) -> list[Row]:
    with demo(model) as (url, process, rows), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.png"
        file.write_bytes(picture("PNG", (256, 256)))
        first = Client(url, verbose=False)
        one(first, file)
        alone = statistics.median(one(first, file)[0] for _ in range(9))
        found, memory = crowd(url, file, process)
    wrong = [said for _, said in found if said and "queue is full" not in said]
    answered = [seconds for seconds, said in found if not said]
    busy = len(found) - len(answered) - len(wrong)
    wait, bound = statistics.median(answered), 1.3 * alone * CLIENTS
    third = len(memory) // 3
    growth = statistics.median(memory[-third:]) - statistics.median(memory[third : 2 * third])
    print(*wrong[:3], sep="\n", end="")
    return [
        *rows,
        Row(f"{CLIENTS} clients, {SECONDS:.0f} s: answers", str(len(answered))),
        Row("errors other than 'queue is full'", str(len(wrong)), "0", not wrong),
        Row("'queue is full'", str(busy)),
        Row("median wait of one client alone, s", f"{alone:.3f}"),
        Row(f"median wait among {CLIENTS}, s", f"{wait:.3f}", f"1.3 x alone x {CLIENTS} = {bound:.3f}", wait <= bound),
        Row("memory, last third over the second, MiB", f"{growth:.1f}", str(GROWTH), growth <= GROWTH),
    ]


def crowd(url: str, file: Path, process: psutil.Process) -> tuple[list[tuple[float, str]], list[float]]:
    """(wait and mistake of each request, resident MiB each second)."""
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
    return found, memory


def one(client: Client, file: Path) -> tuple[float, str]:
    """(seconds from upload to answer, what went wrong)."""
    begun = time.perf_counter()
    try:
        client.predict(handle_file(file), "which organ is shown?", [], *SETTINGS, api_name="/ask")
    except Exception as error:
        return time.perf_counter() - begun, str(error).lower()
    return time.perf_counter() - begun, ""
