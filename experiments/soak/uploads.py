"""200 hostile uploads, one after another, over raw HTTP: each is refused with a sentence or becomes a clean picture."""

import hashlib
import io
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from experiments.soak.trial import Row, demo
from tests.test_read_image import RAMP, dicom, hostile, picture

COUNT = 200
NAMES = ("a.png", "../../a.png", "/etc/a.png", "a.html", "a.svg", "DICOMDIR", "x" * 200 + ".jpg", "..\\a.png", "\u4e2d\u6587.png", ".png")


@dataclass
class Heard:
    """What came back: status codes, refusals that are no sentence, bytes that should not be readable."""

    codes: list[int] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)


def trial(model: str) -> list[Row]:
    with demo(model) as (url, process, rows):
        before, heard = process.memory_info().rss, Heard()
        for name, data in files():
            send(url, name, data, heard)
        alive = httpx.get(f"{url}config").status_code == 200 and process.is_running()
        grown = (process.memory_info().rss - before) / 2**20
    errors = sum(code >= 500 for code in heard.codes)
    print(*heard.unclear[:3], *heard.leaked[:3], sep="\n", end="")
    return [
        *rows,
        Row(f"{COUNT} hostile uploads: answers of 500 and above", str(errors), "0", errors == 0),
        Row("refusals that are not one clear sentence", str(len(heard.unclear)), "0", not heard.unclear),
        Row("readable though nobody uploaded it so", str(len(heard.leaked)), "0", not heard.leaked),
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


def send(url: str, name: str, data: bytes, heard: Heard) -> None:
    response = httpx.post(f"{url}gradio_api/upload", files={"files": (name, data)}, timeout=60)
    heard.codes.append(response.status_code)
    said = response.text
    if response.status_code != 200:
        if not 10 < len(said) < 300 or "\n" in said or "Traceback" in said:
            heard.unclear.append(f"{name}: {response.status_code} {said[:200]!r}")
        return
    clean = Path(response.json()[0])
    served = httpx.get(f"{url}gradio_api/file={clean}")
    if not served.content.startswith(b"\x89PNG") or served.content == data or b"script" in served.content:
        heard.leaked.append(f"{name} is served as it was sent")
    own = clean.parent.parent / hashlib.sha256(data).hexdigest()  # where gradio keeps an upload
    for path in (own / Path(name).name, clean.parent, clean.parent.parent, "/etc/passwd", "pyproject.toml"):
        if httpx.get(f"{url}gradio_api/file={path}").status_code == 200:
            heard.leaked.append(f"{path} can be read")
