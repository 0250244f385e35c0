"""200 hostile uploads of four clients at once, over raw HTTP: each is refused with a sentence or becomes a clean picture.

Then what no page sends: addresses of other machines, routes that gradio has besides, and the uploads of other clients.
"""

import contextlib
import io
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
from PIL import Image

from experiments.soak.images import RAMP, dicom, hostile, picture
from experiments.soak.trial import Row, demo

COUNT, CLIENTS = 200, 4
NAMES = ("a.png", "../../a.png", "/etc/a.png", "a.html", "a.svg", "DICOMDIR", "x" * 200 + ".jpg", "..\\a.png", "\u4e2d\u6587.png", ".png")
ROUTES = ("process_recording", "component_server", "stream/a", "stream/a/close", "api/ask", "call/v2/ask", "vibe-code", "upload/")


@dataclass
class Heard:
    """What came back: status codes, refusals that are no sentence, bytes that should not be readable."""

    codes: list[int] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    places: set[Path] = field(default_factory=set)  # folders, of which no list may tell the names of uploads


def trial(model: str) -> list[Row]:
    with demo(model) as (url, process, rows), contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=60)) for _ in range(CLIENTS)]
        before, heard = process.memory_info().rss, Heard()
        list(pool.map(lambda at, file: send(clients[at % CLIENTS], *file, heard), range(COUNT), files()))
        heard.leaked += [f"{path} can be read" for path in readable_by(clients[-1], heard.places)]
        taken, asked = strange(clients[0])
        alive = clients[0].get("config").status_code == 200 and process.is_running()
        grown = (process.memory_info().rss - before) / 2**20
    errors = sum(code >= 500 for code in heard.codes)
    print(*heard.unclear[:3], *heard.leaked[:3], *taken, sep="\n", end="")
    return [
        *rows,
        Row(f"{COUNT} hostile uploads: answers of 500 and above", str(errors), "0", errors == 0),
        Row("refusals that are not one clear sentence", str(len(heard.unclear)), "0", not heard.unclear),
        Row("readable though nobody uploaded it so", str(len(heard.leaked)), "0", not heard.leaked),
        Row("addresses, routes and paths that no page sends: taken", str(len(taken)), "0", not taken),
        Row("requests to another machine", str(asked), "0", not asked),
        Row("refused", str(sum(code != 200 for code in heard.codes))),
        Row("accepted: what can be read as one picture", str(heard.codes.count(200))),
        Row("memory grown by, MiB", f"{grown:.0f}"),
        Row("still answering", "yes" if alive else "no", "yes", alive),
    ]


def files() -> list[tuple[str, bytes]]:
    """Every kind as it is, then again and again cut or with bytes changed."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        refused = [data for data, _ in hostile(Path(folder)).values()]
        grey = dicom(Path(folder) / "a.dcm", RAMP).read_bytes()
    kinds = [*refused, *readable(), grey]
    made = []
    for number in range(COUNT):
        data = bytearray(kinds[number % len(kinds)])
        for _ in range(number // len(kinds)):
            data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        made.append((NAMES[number % len(NAMES)], bytes(data)))
    return made


def readable() -> list[bytes]:
    """What may be taken, but not be served as it came: a page hidden in a picture, 16 bit, CMYK, tags."""
    deep, cmyk, tagged = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(deep, "PNG")
    Image.new("CMYK", (40, 30), (10, 80, 0, 0)).save(cmyk, "JPEG")
    noted = Image.new("RGB", (40, 30), "red")
    exif = noted.getexif()
    exif[270] = "<script>alert(1)</script>"
    noted.save(tagged, "JPEG", exif=exif)
    hidden = picture("PNG") + b"<html><script>alert(1)</script></html>"
    return [hidden, deep.getvalue(), cmyk.getvalue(), tagged.getvalue(), picture("JPEG"), picture("WEBP")]


def send(client: httpx.Client, name: str, data: bytes, heard: Heard) -> None:
    response = client.post("gradio_api/upload", files={"files": (name, data)})
    heard.codes.append(response.status_code)
    said = response.text
    if response.status_code != 200:
        if not 10 < len(said) < 300 or "\n" in said or "Traceback" in said:
            heard.unclear.append(f"{name}: {response.status_code} {said[:200]!r}")
        return
    clean = Path(response.json()[0])
    served = client.get(f"gradio_api/file={clean}")
    if not served.content.startswith(b"\x89PNG") or served.content == data or b"script" in served.content:
        heard.leaked.append(f"{name} is served as it was sent")
    heard.places |= {clean.parent, clean.parent.parent}


def readable_by(client: httpx.Client, places: set[Path]) -> list[Path]:
    """Which places, and which files of the machine, `client` can read."""
    tried = [*sorted(places), Path("/etc/passwd"), Path("pyproject.toml")]
    return [path for path in tried if client.get(f"gradio_api/file={path}").status_code == 200]


def strange(client: httpx.Client) -> tuple[list[str], int]:
    """(what was taken though it should be refused, how often the demo asked another machine)."""
    with elsewhere() as (address, asked):
        found = {}
        for spelt in (address, quote(address, safe=""), address.replace("http", "HTTP"), "https://huggingface.co/robots.txt"):
            for way in ("file=", "file/", "proxy="):
                found[f"GET {way}{spelt}"] = client.get(f"gradio_api/{way}{spelt}").status_code == 403
        for route in ("call/ask", "run/ask", "queue/join"):
            for path in (address, "/etc/passwd", "pyproject.toml"):
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                chat = [{"role": "user", "content": [{"type": "file", "file": file}]}]
                for place, data in (("picture", [file, "?", []]), ("conversation", [None, "?", chat])):
                    body = {"data": [*data, 8, 0, 1, 0], "session_hash": "a", "fn_index": 0}
                    found[f"POST {route}, {place} {path}"] = client.post(f"gradio_api/{route}", json=body).status_code == 400
        found["GET as evil.example"] = client.get("config", headers={"Host": "evil.example"}).status_code == 403
        found["POST of another page"] = client.post("gradio_api/upload", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        found |= {f"POST {route}": client.post(f"gradio_api/{route}", json={}).status_code == 405 for route in ROUTES}
    return [name for name, refused in found.items() if not refused], len(asked)


@contextlib.contextmanager
def elsewhere():
    """(address of a picture on another port, the requests that came there)."""
    asked: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.png", asked
        server.shutdown()
