"""ASGI middleware in front of gradio that filters requests and converts uploads to clean PNG files with unguessable names.

Gradio alone would

- keep every uploaded file and serve it under a path made from the hash of its content. Here only the decoded pixels of an upload are kept,
  never its bytes.
- download files that a request names by URL. Here no request makes this machine contact another one.
- answer requests under any host name and from any page, so that a foreign page could point its own name at this machine (DNS rebinding)
  and read the demo. Here only requests of the demo's own page are answered.
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

SIDE = 1536  # pixels; larger images are stored and shown at this size
LOGIN, UPLOAD = "/login", "/gradio_api/upload"
UPLOAD_PROGRESS = "/gradio_api/upload_progress"  # requested by the page, which does not show it
LOGIN_CHECK = "/gradio_api/login_check"  # answers 200 to visitors who are logged in
DEEP_LINK = "/gradio_api/deep_link"  # would write a conversation into a file
CALL = re.compile(r"/gradio_api/(queue/join|cancel|reset|(call|run)/[^/]+)/?")  # JSON requests of the page and of gradio_client


class UploadMiddleware:
    """`folder` is the folder that gradio serves. `is_own_host` tells which host names in requests belong to the demo."""

    def __init__(self, app: ASGIApp, *, folder: Path, limits: Limits, is_own_host: Callable[[str], bool]):
        self.app, self.folder, self.limits, self.is_own_host = app, folder.resolve(), limits, is_own_host
        self.decoders: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_post, path, headers = scope["method"] == "POST", scope["path"], dict(scope["headers"])
        send = _with_security_headers(send)
        # Range requests are dropped: the files are small, and gradio fails on some ranges.
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        if not self.is_own_host(_host_name(headers.get(b"host", b""))):
            await _respond(send, 403, b"wrong host name; open the demo at localhost")
        elif is_post and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            await _respond(send, 403, b"requests from other pages are refused")
        elif "://" in path:
            await _respond(send, 403, b"files from other machines are refused")
        elif path == UPLOAD_PROGRESS:
            await _respond(send, 200, b'data: {"msg": "done"}\n\n', content_type=b"text/event-stream")
        elif path.rstrip("/") == DEEP_LINK:
            await _respond(send, 405, b"the demo does not store conversations")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS") or (is_post and path.rstrip("/") == LOGIN):
            await self._limited(self.app, scope, receive, send, max_bytes=self.limits.body)
        elif is_post and path == UPLOAD:
            await self._upload(scope, receive, send)
        elif is_post and CALL.fullmatch(path):
            await self._limited(self._call, scope, receive, send, max_bytes=self.limits.body)
        else:
            await _respond(send, 405, b"unknown request")

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards a JSON request, unless it names a file that was not uploaded."""
        body = await Request(scope, receive).body()
        try:
            only_uploads = _paths_are_inside(self.folder, json.loads(body))
        except (ValueError, RecursionError):
            await _respond(send, 400, b"the request is not valid JSON")
            return
        if not only_uploads:
            await _respond(send, 400, b"upload the image as a file")
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        try:
            await self.app(scope, replay, send)
        except KeyError:
            await _respond(send, 400, b"the page has no such function")

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._is_logged_in(scope):
            await _respond(send, 401, b"log in first")
            return
        await self._limited(self._store, scope, receive, send, max_bytes=int(self.limits.megabytes * 2**20) + 64 * 1024)

    async def _is_logged_in(self, scope: Scope) -> bool:
        """Asks gradio whether the sender of a request is logged in."""
        statuses: list[int] = []

        async def empty_body() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def record_status(message: Message) -> None:
            statuses.append(message.get("status", 0))

        await self.app({**scope, "method": "GET", "path": LOGIN_CHECK, "raw_path": LOGIN_CHECK.encode()}, empty_body, record_status)
        return statuses[0] == 200

    async def _store(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles an upload in place of gradio, which would write every part into its served folder and leave it after an abort."""
        self.decoders = self.decoders or CapacityLimiter(2)
        try:
            async with Request(scope, receive).form(max_files=2, max_fields=8) as form:
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                status, body = await to_thread.run_sync(self._store_image, files, limiter=self.decoders)
        except HTTPException as error:
            await _respond(send, error.status_code, error.detail.encode())
            return
        await _respond(send, status, body, content_type=b"application/json" if status == 200 else b"text/plain; charset=utf-8")

    def _store_image(self, files: list[UploadFile]) -> tuple[int, bytes]:
        """Returns (status, body): the path of the clean image as JSON, or the error message."""
        try:
            if len(files) != 1:
                raise UserError(f"the request has {len(files)} files; upload one image at a time")
            png = self._clean_png(files[0])
        except UserError as error:
            return 415, str(error).encode()
        target = self.folder / secrets.token_hex(32) / "picture.png"
        target.parent.mkdir()
        target.write_bytes(png)
        return 200, json.dumps([str(target)]).encode()

    def _clean_png(self, file: UploadFile) -> bytes:
        """The pixels of an upload as PNG. The upload is written under its own name, for error messages, to a folder that is not served."""
        name = re.sub(r"[^\w. -]+", "_", file.filename or "")[-60:].lstrip(". ") or "the file"
        with tempfile.TemporaryDirectory(prefix="openmedq-upload-") as temporary:
            path = Path(temporary) / name
            path.write_bytes(file.file.read())
            image = read_image(path, max_pixels=int(self.limits.megapixels * 1e6), max_bytes=int(self.limits.megabytes * 2**20))
        image.thumbnail((SIDE, SIDE))
        return to_png(image)

    async def _limited(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, max_bytes: int) -> None:
        """Forwards a request to `app`; refuses it if it announces or sends more than `max_bytes` bytes."""
        remaining, has_started = max_bytes, False

        async def counting_receive() -> Message:
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            return message if remaining >= 0 else {"type": "http.disconnect"}

        async def guarded_send(message: Message) -> None:
            nonlocal has_started
            if remaining >= 0 or has_started:
                has_started = True
                await send(message)

        content_length = dict(scope["headers"]).get(b"content-length", b"0")
        if content_length.isdigit() and int(content_length) <= max_bytes:
            with contextlib.suppress(ClientDisconnect):
                await app(scope, counting_receive, guarded_send)
        else:
            remaining = -1
        if remaining < 0 and not has_started:
            await _respond(send, 413, f"the request is larger than {max_bytes / 2**20:.1f} MiB".encode())


def _host_name(host: bytes) -> str:
    """The name or address in a Host header; empty if it is invalid."""
    try:
        return urlsplit(b"//" + host).hostname.decode() or ""  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        return ""


def _paths_are_inside(folder: Path, data: Any) -> bool:
    """Whether every `path` in a request, at any depth, lies in `folder`. Gradio may treat any of them as a file."""
    queue = [data]
    while queue:
        value = queue.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and not (Path(path).is_absolute() and Path(path).resolve().is_relative_to(folder)):
                return False
            queue += value.values()
        elif isinstance(value, list):
            queue += value
    return True


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        await send(message)

    return send_with_headers


async def _respond(send: Send, status: int, body: bytes, *, content_type: bytes = b"text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class UploadCleaner:
    """Deletes files older than `keep_seconds`, except those that existed at the start of the demo (examples)."""

    def __init__(self, folder: Path, *, keep_seconds: float):
        self.folder, self.keep_seconds = folder, keep_seconds
        self.initial_files = {path for path in folder.rglob("*") if path.is_file()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def sweep(self) -> None:
        oldest = time.time() - self.keep_seconds
        for path in list(self.folder.rglob("*")):
            with contextlib.suppress(OSError):
                if path in self.initial_files or path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():
                    path.rmdir()  # raises OSError, as intended, if the folder is not empty
                else:
                    path.unlink()
                    path.parent.rmdir()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(min(60.0, self.keep_seconds / 4)):
            self.sweep()
