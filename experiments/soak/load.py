"""Eight clients that send requests to the demo without pause for two minutes."""

import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from gradio_client import Client, handle_file

from experiments.soak.images import picture
from experiments.soak.trial import Row, start_demo

CLIENTS, SECONDS = 8, 120.0
SETTINGS = (32, 0, 1, 0)  # tokens, temperature, top-p, seed
MAX_GROWTH = 20  # MiB


def trial(model: str) -> list[Row]:
    with start_demo(model) as (url, process, rows), tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "a.png"
        image.write_bytes(picture("PNG", (256, 256)))
        client = Client(url, verbose=False)
        send_question(client, image)
        single = statistics.median(send_question(client, image)[0] for _ in range(9))
        requests, memory = run_clients(url, image, process)
    latencies = [seconds for seconds, error in requests if not error]
    errors = [error for _, error in requests if error and "queue is full" not in error]
    rejected = len(requests) - len(latencies) - len(errors)
    latency, bound = statistics.median(latencies), 1.3 * single * CLIENTS
    third = len(memory) // 3
    growth = statistics.median(memory[-third:]) - statistics.median(memory[third : 2 * third])
    print(*errors[:3], sep="\n", end="")
    return [
        *rows,
        Row(f"{CLIENTS} clients, {SECONDS:.0f} s: answers", str(len(latencies))),
        Row("errors other than 'queue is full'", str(len(errors)), "0", not errors),
        Row("'queue is full'", str(rejected)),
        Row("median latency of one client alone, s", f"{single:.3f}"),
        Row(f"median latency with {CLIENTS} clients, s", f"{latency:.3f}", f"1.3 x alone x {CLIENTS} = {bound:.3f}", latency <= bound),
        Row("memory, last third minus second, MiB", f"{growth:.1f}", str(MAX_GROWTH), growth <= MAX_GROWTH),
    ]


def run_clients(url: str, image: Path, process: psutil.Process) -> tuple[list[tuple[float, str]], list[float]]:
    """((latency in seconds, error or "") of each request, resident memory in MiB once per second)."""
    requests: list[tuple[float, str]] = []
    memory: list[float] = []
    deadline = time.perf_counter() + SECONDS

    def send_questions() -> None:
        client = Client(url, verbose=False)
        while time.perf_counter() < deadline:
            requests.append(send_question(client, image))

    threads = [threading.Thread(target=send_questions) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while time.perf_counter() < deadline:
        memory.append(process.memory_info().rss / 2**20)
        time.sleep(1)
    for thread in threads:
        thread.join()
    return requests, memory


def send_question(client: Client, image: Path) -> tuple[float, str]:
    """(seconds from upload to answer, error message or "")."""
    started = time.perf_counter()
    try:
        client.predict(handle_file(image), "which organ is shown?", [], *SETTINGS, api_name="/ask")
    except Exception as error:
        return time.perf_counter() - started, str(error).lower()
    return time.perf_counter() - started, ""
