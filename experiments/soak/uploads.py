"""Sends 200 hostile uploads from four clients at once, over raw HTTP. Each must be refused with one clear sentence or become a clean image.

It then sends requests that no page sends: addresses of other machines, other routes of gradio, and the uploads of other clients.
"""

import contextlib
import io
import random
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
from PIL import Image

from experiments.soak.images import RAMP, dicom, hostile, picture
from experiments.soak.trial import Row, start_demo

COUNT, CLIENTS = 200, 4
NAMES = ("a.png", "../../a.png", "/etc/a.png", "a.html", "a.svg", "DICOMDIR", "x" * 200 + ".jpg", "..\\a.png", "\u4e2d\u6587.png", ".png")
ROUTES = ("process_recording", "component_server", "stream/a", "stream/a/close", "api/ask", "call/v2/ask", "vibe-code", "upload/")


@dataclass
class Responses:
    """Status codes, error messages that are not one sentence, and contents that should not be readable."""

    codes: list[int] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)  # upload folders; their listings must not be readable


def trial(model: str) -> list[Row]:
    with start_demo(model) as (url, process, rows), contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=60)) for _ in range(CLIENTS)]
        memory, responses = process.memory_info().rss, Responses()
        list(pool.map(lambda at, file: send(clients[at % CLIENTS], *file, responses), range(COUNT), make_files()))
        responses.leaks += [f"{path} can be read" for path in readable_paths(clients[-1], responses.folders)]
        accepted, outgoing = send_forged_requests(clients[0])
        alive = clients[0].get("config").status_code == 200 and process.is_running()
        growth = (process.memory_info().rss - memory) / 2**20
    errors = sum(code >= 500 for code in responses.codes)
    print(*responses.unclear[:3], *responses.leaks[:3], *accepted, sep="\n", end="")
    return [
        *rows,
        Row(f"{COUNT} hostile uploads: status 500 and above", str(errors), "0", errors == 0),
        Row("error messages that are not one clear sentence", str(len(responses.unclear)), "0", not responses.unclear),
        Row("contents that should not be readable", str(len(responses.leaks)), "0", not responses.leaks),
        Row("forged addresses, routes and paths: accepted", str(len(accepted)), "0", not accepted),
        Row("requests of the demo to another machine", str(outgoing), "0", not outgoing),
        Row("uploads refused", str(sum(code != 200 for code in responses.codes))),
        Row("uploads accepted", str(responses.codes.count(200))),
        Row("memory growth, MiB", f"{growth:.0f}"),
        Row("demo still answers", "yes" if alive else "no", "yes", alive),
    ]


def make_files() -> list[tuple[str, bytes]]:
    """(name, bytes) of each upload: every kind unchanged, then repeatedly truncated or with random bytes changed."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        invalid = [data for data, _ in hostile(Path(folder)).values()]
        grey = dicom(Path(folder) / "a.dcm", RAMP).read_bytes()
    kinds = [*invalid, *valid_images(), grey]
    files = []
    for number in range(COUNT):
        data = bytearray(kinds[number % len(kinds)])
        for _ in range(number // len(kinds)):
            data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        files.append((NAMES[number % len(NAMES)], bytes(data)))
    return files


def valid_images() -> list[bytes]:
    """Images that may be accepted but must be re-encoded: HTML after the image, 16 bit, CMYK, EXIF tags."""
    deep, cmyk, tagged = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(deep, "PNG")
    Image.new("CMYK", (40, 30), (10, 80, 0, 0)).save(cmyk, "JPEG")
    image = Image.new("RGB", (40, 30), "red")
    exif = image.getexif()
    exif[270] = "<script>alert(1)</script>"
    image.save(tagged, "JPEG", exif=exif)
    polyglot = picture("PNG") + b"<html><script>alert(1)</script></html>"
    return [polyglot, deep.getvalue(), cmyk.getvalue(), tagged.getvalue(), picture("JPEG"), picture("WEBP")]


def send(client: httpx.Client, name: str, data: bytes, responses: Responses) -> None:
    """Uploads one file and adds the outcome to `responses`."""
    response = client.post("gradio_api/upload", files={"files": (name, data)})
    responses.codes.append(response.status_code)
    text = response.text
    if response.status_code != 200:
        if not 10 < len(text) < 300 or "\n" in text or "Traceback" in text:
            responses.unclear.append(f"{name}: {response.status_code} {text[:200]!r}")
        return
    stored = Path(response.json()[0])
    served = client.get(f"gradio_api/file={stored}")
    if not served.content.startswith(b"\x89PNG") or served.content == data or b"script" in served.content:
        responses.leaks.append(f"{name} is served as it was sent")
    responses.folders |= {stored.parent, stored.parent.parent}


def readable_paths(client: httpx.Client, folders: set[Path]) -> list[Path]:
    """The upload folders and the files of the machine that `client` can read; none should be."""
    paths = [*sorted(folders), Path("/etc/passwd"), Path("pyproject.toml")]
    return [path for path in paths if client.get(f"gradio_api/file={path}").status_code == 200]


def send_forged_requests(client: httpx.Client) -> tuple[list[str], int]:
    """(requests that were accepted but must be refused, number of requests that the demo sent to another machine)."""
    refused = {}
    with other_server() as (address, requests):
        for url in (address, quote(address, safe=""), address.replace("http", "HTTP"), "https://huggingface.co/robots.txt"):
            for route in ("file=", "file/", "proxy="):
                refused[f"GET {route}{url}"] = client.get(f"gradio_api/{route}{url}").status_code == 403
        for route in ("call/ask", "run/ask", "queue/join"):
            for path in (address, "/etc/passwd", "pyproject.toml"):
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                chat = [{"role": "user", "content": [{"type": "file", "file": file}]}]
                for field_name, data in (("picture", [file, "?", []]), ("conversation", [None, "?", chat])):
                    body = {"data": [*data, 8, 0, 1, 0], "session_hash": "a", "fn_index": 0}
                    status = client.post(f"gradio_api/{route}", json=body).status_code
                    refused[f"POST {route}, {field_name} {path}"] = status == 400
        refused["GET as evil.example"] = client.get("config", headers={"Host": "evil.example"}).status_code == 403
        refused["POST of another page"] = client.post("gradio_api/upload", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        refused |= {f"POST {route}": client.post(f"gradio_api/{route}", json={}).status_code == 405 for route in ROUTES}
    return [name for name, is_refused in refused.items() if not is_refused], len(requests)


@contextlib.contextmanager
def other_server() -> Iterator[tuple[str, list[str]]]:
    """(address of an image on another port, paths of the requests that arrived there)."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.png", requests
        server.shutdown()
