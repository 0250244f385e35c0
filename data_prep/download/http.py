"""Downloads files over HTTP: resumes partial files, retries after connection errors and verifies checksums."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from src.runtime.errors import UserError
from src.runtime.progress import Progress

ATTEMPTS, RETRY_DELAY = 6, 1.0  # seconds before the second attempt; doubled for each further one
CHUNK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file to download to `path`. `checksum` is `sha256:...`, `md5:...` or `git:...` (a blob id), or empty if unknown."""

    path: str
    address: str
    size: int = 0  # bytes; 0 if unknown
    checksum: str = ""


def download_file(remote: RemoteFile, folder: Path) -> None:
    """Downloads to `<path>.part`, which a later run resumes, and renames it once it is complete and verified.

    Raises `UserError` if the download fails, or is truncated or invalid.
    """
    target = folder / remote.path
    part = _part_path(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    with_retries(lambda: _resume(remote, part), remote.address)
    if remote.size and part.stat().st_size != remote.size:
        size = part.stat().st_size
        part.unlink()
        raise UserError(f"{remote.address}: {remote.path} has {size:,} bytes instead of {remote.size:,}; run the same command again")
    verify_checksum(part, remote)
    part.replace(target)
    _etag_path(part).unlink(missing_ok=True)


def partial_bytes(target: Path) -> int:
    """Bytes of a file that an interrupted run has downloaded."""
    return _part_path(target).stat().st_size if _part_path(target).exists() else 0


def with_retries(request: Callable[[], None], address: str) -> None:
    """Runs `request` until it succeeds, at most `ATTEMPTS` times.

    Connection errors and the statuses 429 and 5xx are retried. Raises `UserError` for any other status, or after the last
    attempt.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            if status < 500 and status != 429:
                raise UserError(refusal_message(status, address)) from None
            reason = f"status {status}"
        except (httpx2.TransportError, httpx2.StreamError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
                raise  # a local error, such as a full disk
            reason = str(error) or type(error).__name__
        if attempt < ATTEMPTS - 1:
            time.sleep(RETRY_DELAY * 2**attempt)
    raise UserError(f"{address}: cannot be read after {ATTEMPTS} attempts ({reason}); run the same command again to continue")


def refusal_message(status: int, address: str) -> str:
    if status in (401, 403):
        return f"{address}: access denied ({status}); accept its terms there, log in (hub: `hf auth login`) and run the same command again"
    return f"{address}: the server answers with status {status}; check whether the file has moved"


def _resume(remote: RemoteFile, part: Path) -> None:
    """Downloads the rest of `part`. Starts again if the file has changed (another ETag) or the server does not support ranges."""
    start = part.stat().st_size if part.exists() else 0
    if remote.size and start == remote.size:
        return
    etag = _etag_path(part).read_text() if start and _etag_path(part).exists() else ""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {}) | ({"If-Range": etag} if etag else {})
    with httpx2.stream("GET", remote.address, headers=headers, follow_redirects=True, timeout=60) as response:
        if response.status_code == 416:  # range not satisfiable: the part is complete or too long
            if response.headers.get("Content-Range", "").rpartition("/")[2] == str(start):
                return
            part.unlink()
            raise httpx2.ReadError("the partial file is longer than the remote file")
        response.raise_for_status()
        start = start if response.status_code == 206 else 0
        _etag_path(part).write_text(response.headers.get("ETag", ""))
        total = remote.size or start + int(response.headers.get("Content-Length", 0)) or None
        progress = Progress(total=total, initial=start, unit="B", unit_scale=True, desc=Path(remote.path).name)
        with part.open("r+b" if start else "wb") as file, progress:
            file.seek(start)
            for data in response.iter_bytes():
                file.write(data)
                progress.update(len(data))
            file.truncate()


def _part_path(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _etag_path(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def remote_size(address: str) -> int:
    """The content length of an address in bytes; 0 if the server does not state it."""
    sizes: list[int] = []

    def request() -> None:
        response = httpx2.head(address, headers={"Accept-Encoding": "identity"}, follow_redirects=True, timeout=60)
        if response.status_code not in (405, 501):  # the server does not support HEAD
            response.raise_for_status()
            sizes.append(int(response.headers.get("Content-Length", 0)))

    with_retries(request, address)
    return sum(sizes)


def verify_checksum(path: Path, remote: RemoteFile) -> None:
    """Removes the file and raises `UserError` if it does not have the expected checksum."""
    if not remote.checksum:
        return
    digest = checksum(path, remote.checksum.partition(":")[0])
    if digest != remote.checksum:
        path.unlink()
        raise UserError(
            f"{remote.path}: downloaded with checksum {digest} instead of {remote.checksum}, and removed; run the same command "
            "again, and if this happens again, the file has changed at its source"
        )


def checksum(path: Path, kind: str = "sha256") -> str:
    """`kind:hex`; for `git`, the id of the file as a git blob (SHA-1 of a header and the content)."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if kind == "git" else hashlib.new(kind)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"
