"""Stands before gradio: an upload becomes a clean PNG under a name that nobody can guess, or is refused with one sentence.

Gradio keeps whatever is posted to it and serves it back by a path made of the content's hash; here no byte of an upload stays. It also
fetches what a request calls a file and is an address; here no request makes this machine ask another.
"""

import contextlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.data.read_image import png, read_image
from src.errors import UserError
from src.serving.limits import Limits

SIDE = 1536  # pixels; larger pictures are shown and kept at this
LOGIN, UPLOAD = "/login", "/gradio_api/upload"
TOLD = re.compile(r"/gradio_api/(queue/join|cancel|reset|(call|run)/[^/]+)/?")  # as the page and gradio_client do, in JSON


class Guard:
    """ASGI middleware. `folder` is where gradio keeps uploads; `recent` holds what became of the last few, until it is cleared."""

    def __init__(self, app: ASGIApp, *, folder: Path, limits: Limits, recent: dict[Path, bytes | UserError]):
        self.app, self.folder, self.limits = app, folder.resolve(), limits
        self.decoders: CapacityLimiter | None = None
        self.recent, self.lock = recent, threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        posts, path = scope["method"] == "POST", scope["path"]
        send = _with_headers(send)
        if "://" in path:
            await _answer(send, 403, b"files of other machines are not fetched")
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

        await self.app(scope, again, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets gradio receive the files, then replaces each before its path is told."""
        start: Message = {}
        body = bytearray()

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        await self._limited(self.app, scope, receive, keep, most=int(self.limits.megabytes * 2**20) + 64 * 1024)
        if start["status"] != 200:
            await _answer(send, start["status"], bytes(body))
            return
        self.decoders = self.decoders or CapacityLimiter(2)
        status, clean = await to_thread.run_sync(self._clean, json.loads(bytes(body)), limiter=self.decoders)
        await _answer(send, status, clean, kind=b"application/json" if status == 200 else b"text/plain; charset=utf-8")

    def _clean(self, names: list[str]) -> tuple[int, bytes]:
        """(status, what the visitor hears): the path of the clean picture, or why there is none."""
        paths = [Path(name) for name in names]
        with self.lock:  # gradio names uploads by their content: two equal ones at a time are one file
            try:
                found = (
                    self._picture(paths[0]) if len(paths) == 1 else UserError(f"{len(paths)} files were sent; send one picture at a time")
                )
            finally:
                for path in paths:
                    self._remove(path)
        if isinstance(found, UserError):
            return 415, str(found).encode()
        target = self.folder / secrets.token_hex(32) / "picture.png"
        target.parent.mkdir()
        target.write_bytes(found)
        return 200, json.dumps([str(target)]).encode()

    def _picture(self, path: Path) -> bytes | UserError:
        """The upload as a clean PNG, or what is wrong with it; of one that an equal upload has taken away, what became of that."""
        if path in self.recent and not path.exists():
            return self.recent[path]
        try:
            image = read_image(path, max_pixels=int(self.limits.megapixels * 1e6), max_bytes=int(self.limits.megabytes * 2**20))
            image.thumbnail((SIDE, SIDE))
            self.recent[path] = png(image)
        except UserError as mistake:
            self.recent[path] = mistake
        found = self.recent[path]
        while len(self.recent) > 8:
            self.recent.pop(next(iter(self.recent)), None)
        return found

    def _remove(self, path: Path) -> None:
        if path.resolve().is_relative_to(self.folder):
            path.unlink(missing_ok=True)  # its folder stays for the sweeper: an equal upload may be about to move into it

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


class Sweeper:
    """Deletes what is older than `keep_seconds`, but not what stood there when the demo started (examples)."""

    def __init__(self, folder: Path, *, keep_seconds: float, forget: Callable[[], None] = lambda: None):
        self.folder, self.keep_seconds, self.forget = folder, keep_seconds, forget
        self.kept = {path for path in folder.rglob("*") if path.is_file()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def sweep(self) -> None:
        self.forget()
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
