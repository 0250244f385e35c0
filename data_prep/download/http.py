"""Files over HTTP: resumed where they were cut, tried again, checked."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from src.runtime.errors import UserError
from src.runtime.progress import Progress

ATTEMPTS, PATIENCE = 6, 1.0  # seconds before the second attempt; doubled each time
CHUNK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """One file to have under `path`. `checksum` is `sha256:...`, `md5:...` or `git:...` (a blob id), or empty where unknown."""

    path: str
    address: str
    size: int = 0  # bytes; 0 where unknown
    checksum: str = ""


def download_file(remote: RemoteFile, folder: Path) -> None:
    """Downloads into `<path>.part`, which is continued by a later run, and renames it once it is whole and right."""
    target = folder / remote.path
    part = _part(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    with_retries(lambda: _continue(remote, part), remote.address)
    if remote.size and part.stat().st_size != remote.size:
        found = part.stat().st_size
        part.unlink()
        raise UserError(f"{remote.path} has {found:,} bytes instead of {remote.size:,} at {remote.address}; run the same command again")
    verify_checksum(part, remote)
    part.replace(target)
    _version(part).unlink(missing_ok=True)


def partial_bytes(target: Path) -> int:
    """Bytes of a file that an interrupted run has left."""
    return _part(target).stat().st_size if _part(target).exists() else 0


def with_retries(action: Callable[[], None], address: str) -> None:
    """Runs `action` until the connection holds; what the server refuses is not tried again."""
    for number in range(ATTEMPTS):
        try:
            return action()
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            if code < 500 and code != 429:
                raise UserError(refusal_message(code, address)) from None
            reason = f"status {code}"
        except (httpx2.TransportError, httpx2.StreamError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
                raise  # a full disk is no matter of patience
            reason = str(error) or type(error).__name__
        if number < ATTEMPTS - 1:
            time.sleep(PATIENCE * 2**number)
    raise UserError(f"{address} cannot be read after {ATTEMPTS} attempts ({reason}); run the same command again to continue")


def refusal_message(code: int, address: str) -> str:
    if code in (401, 403):
        return f"{address} refuses access ({code}); accept its terms there, log in (hub: `hf auth login`) and run the same command again"
    return f"{address} answers with status {code}; look up whether it has moved"


def _continue(remote: RemoteFile, part: Path) -> None:
    """Asks for the rest of `part`; a file that has changed since (another ETag), or a server without ranges, begins anew."""
    have = part.stat().st_size if part.exists() else 0
    if remote.size and have == remote.size:
        return
    version = _version(part).read_text() if have and _version(part).exists() else ""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {}) | ({"If-Range": version} if version else {})
    with httpx2.stream("GET", remote.address, headers=headers, follow_redirects=True, timeout=60) as response:
        if response.status_code == 416:  # there is nothing behind what we have
            if response.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            raise httpx2.ReadError("it is shorter than what was kept of it")
        response.raise_for_status()
        have = have if response.status_code == 206 else 0
        _version(part).write_text(response.headers.get("ETag", ""))
        total = remote.size or have + int(response.headers.get("Content-Length", 0)) or None
        progress = Progress(total=total, initial=have, unit="B", unit_scale=True, desc=Path(remote.path).name)
        with part.open("r+b" if have else "wb") as file, progress:
            file.seek(have)
            for data in response.iter_bytes():
                file.write(data)
                progress.update(len(data))
            file.truncate()


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _version(part: Path) -> Path:
    """Where the ETag of what was kept stands."""
    return part.with_name(part.name + ".etag")


def size_of(address: str) -> int:
    """Bytes that an address promises; 0 where it does not say."""
    found: list[int] = []

    def look() -> None:
        response = httpx2.head(address, headers={"Accept-Encoding": "identity"}, follow_redirects=True, timeout=60)
        if response.status_code not in (405, 501):  # a server without HEAD
            response.raise_for_status()
            found.append(int(response.headers.get("Content-Length", 0)))

    with_retries(look, address)
    return sum(found)


def verify_checksum(path: Path, remote: RemoteFile) -> None:
    """Removes the file and raises `UserError` where its checksum is not the one that was promised."""
    if not remote.checksum:
        return
    kind = remote.checksum.partition(":")[0]
    found = checksum(path, kind)
    if found != remote.checksum:
        path.unlink()
        raise UserError(
            f"{remote.path} arrived with the checksum {found} instead of {remote.checksum} and was removed; run the same command "
            "again, and if this happens again the file has changed at its source"
        )


def checksum(path: Path, kind: str = "sha256") -> str:
    """`kind:hex`; `git` is the id that git gives a blob (sha1 over a header and the content)."""
    state = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if kind == "git" else hashlib.new(kind)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            state.update(block)
    return f"{kind}:{state.hexdigest()}"
