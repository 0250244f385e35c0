"""Stands before gradio: an upload becomes a clean PNG under a name that nobody can guess, or is refused with one sentence.

Gradio keeps whatever is posted to it and serves it back by a path made of the content's hash; here no byte of an upload stays. It also
fetches what a request calls a file and is an address; here no request makes this machine ask another. And it answers to any name and any
page: a page from elsewhere could give its own name this machine's address and read the demo; here only the demo's own page is answered.
"""

import contextlib
import json
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.data.image_io import read_image, to_png
from src.runtime.errors import UserError
from src.serving.limits import Limits

SIDE = 1536  # pixels; larger pictures are shown and kept at this
LOGIN, UPLOAD, PROGRESS = "/login", "/gradio_api/upload", "/gradio_api/upload_progress"  # the page asks for the last, and shows nothing
KNOWN, STORES = "/gradio_api/login_check", "/gradio_api/deep_link"  # says whether one is logged in; writes a conversation into a file
TOLD = re.compile(r"/gradio_api/(queue/join|cancel|reset|(call|run)/[^/]+)/?")  # as the page and gradio_client do, in JSON


class UploadMiddleware:
    """ASGI middleware. `folder` is what gradio serves; `ours` says which names of a machine, as requests give them, are the demo's."""

    def __init__(self, app: ASGIApp, *, folder: Path, limits: Limits, ours: Callable[[str], bool]):
        self.app, self.folder, self.limits, self.ours = app, folder.resolve(), limits, ours
        self.decoders: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        posts, path, headers = scope["method"] == "POST", scope["path"], dict(scope["headers"])
        send = _with_headers(send)
        # No range: the files are small, and gradio breaks on some of them.
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        if not self.ours(_machine(headers.get(b"host", b""))):
            await _answer(send, 403, b"the demo answers at localhost only")
        elif posts and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            await _answer(send, 403, b"the demo takes nothing from other pages")
        elif "://" in path:
            await _answer(send, 403, b"files of other machines are not fetched")
        elif path == PROGRESS:
            await _answer(send, 200, b'data: {"msg": "done"}\n\n', kind=b"text/event-stream")
        elif path.rstrip("/") == STORES:
            await _answer(send, 405, b"the demo keeps no conversations")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS") or (posts and path.rstrip("/") == LOGIN):
            await self._limited(self.app, scope, receive, send, most=self.limits.body)
        elif posts and path == UPLOAD:
            await self._upload(scope, receive, send)
        elif posts and TOLD.fullmatch(path):
            await self._limited(self._told, scope, receive, send, most=self.limits.body)
        else:
            await _answer(send, 405, b"the demo takes no such request")

    async def _told(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands JSON on, unless a file in it did not come through the upload."""
        body = await Request(scope, receive).body()
        try:
            uploaded = _names_only(self.folder, json.loads(body))
        except (ValueError, RecursionError):
            await _answer(send, 400, b"the request cannot be read")
            return
        if not uploaded:
            await _answer(send, 400, b"upload the picture as a file")
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        try:
            await self.app(scope, again, send)
        except KeyError:
            await _answer(send, 400, b"the page has no such function")

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._may(scope):
            await _answer(send, 401, b"log in first")
            return
        await self._limited(self._received, scope, receive, send, most=int(self.limits.megabytes * 2**20) + 64 * 1024)

    async def _may(self, scope: Scope) -> bool:
        """Whether gradio knows who sends this."""
        heard: list[int] = []

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def note(message: Message) -> None:
            heard.append(message.get("status", 0))

        await self.app({**scope, "method": "GET", "path": KNOWN, "raw_path": KNOWN.encode()}, nothing, note)
        return heard[0] == 200

    async def _received(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio would write every part into the folder that it serves, and leave it there where the request breaks off."""
        self.decoders = self.decoders or CapacityLimiter(2)
        try:
            async with Request(scope, receive).form(max_files=2, max_fields=8) as form:
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                status, said = await to_thread.run_sync(self._clean, files, limiter=self.decoders)
        except HTTPException as error:
            await _answer(send, error.status_code, error.detail.encode())
            return
        await _answer(send, status, said, kind=b"application/json" if status == 200 else b"text/plain; charset=utf-8")

    def _clean(self, files: list[UploadFile]) -> tuple[int, bytes]:
        """(status, what the visitor hears): the path of the clean picture, or why there is none."""
        try:
            if len(files) != 1:
                raise UserError(f"{len(files)} files were sent; send one picture at a time")
            found = self._picture(files[0])
        except UserError as mistake:
            return 415, str(mistake).encode()
        target = self.folder / secrets.token_hex(32) / "picture.png"
        target.parent.mkdir()
        target.write_bytes(found)
        return 200, json.dumps([str(target)]).encode()

    def _picture(self, file: UploadFile) -> bytes:
        """The upload as a clean PNG. It lies for a moment where nothing is served from, under its name, which a refusal tells."""
        name = re.sub(r"[^\w. -]+", "_", file.filename or "")[-60:].lstrip(". ") or "the file"
        with tempfile.TemporaryDirectory(prefix="openmedq-upload-") as spare:
            path = Path(spare) / name
            path.write_bytes(file.file.read())
            image = read_image(path, max_pixels=int(self.limits.megapixels * 1e6), max_bytes=int(self.limits.megabytes * 2**20))
        image.thumbnail((SIDE, SIDE))
        return to_png(image)

    async def _limited(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, most: int) -> None:
        """Hands a request to `app`, or refuses it where it announces, or then sends, more than `most` bytes."""
        room, begun = most, False

        async def counted() -> Message:
            nonlocal room
            message = await receive()
            room -= len(message.get("body", b""))
            return message if room >= 0 else {"type": "http.disconnect"}

        async def noted(message: Message) -> None:
            nonlocal begun
            if room >= 0 or begun:
                begun = True
                await send(message)

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) <= most:
            with contextlib.suppress(ClientDisconnect):
                await app(scope, counted, noted)
        else:
            room = -1
        if room < 0 and not begun:
            await _answer(send, 413, f"the request is larger than {most / 2**20:.1f} MiB".encode())


def _machine(host: bytes) -> str:
    """The name or address in a Host header; empty where it is none."""
    try:
        return urlsplit(b"//" + host).hostname.decode() or ""  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        return ""


def _names_only(folder: Path, said: Any) -> bool:
    """Whether every `path` in a request, however deep, lies in `folder`: whatever gradio may take for a file."""
    waiting = [said]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            path = one.get("path")
            if isinstance(path, str) and not (Path(path).is_absolute() and Path(path).resolve().is_relative_to(folder)):
                return False
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return True


def _with_headers(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        await send(message)

    return marked


async def _answer(send: Send, status: int, body: bytes, *, kind: bytes = b"text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class UploadCleaner:
    """Deletes what is older than `keep_seconds`, but not what stood there when the demo started (examples)."""

    def __init__(self, folder: Path, *, keep_seconds: float):
        self.folder, self.keep_seconds = folder, keep_seconds
        self.kept = {path for path in folder.rglob("*") if path.is_file()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def sweep(self) -> None:
        oldest = time.time() - self.keep_seconds
        for path in list(self.folder.rglob("*")):
            with contextlib.suppress(OSError):
                if path in self.kept or path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():
                    path.rmdir()  # fails, as it should, where something is left in it
                else:
                    path.unlink()
                    path.parent.rmdir()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(min(60.0, self.keep_seconds / 4)):
            self.sweep()
