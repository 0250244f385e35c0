"""Shards at an address, https:// or s3:// or whatever fsspec opens: index and manifest are fetched, tars are staged as needed.

A tar is staged whole into a cache on the local disk, ahead of the stream and in its order. Processes share the cache: a file is
fetched under a lock, held to the manifest's checksum and renamed; the tars that were not used for longest make room.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from src.data.shards import Shards
from src.runtime.errors import UserError, suggest

ATTEMPTS, FIRST_WAIT = 6, 0.5  # of one file; seconds before the second attempt, doubled each time
SILENCE = 60  # seconds without a byte after which a connection counts as lost
AHEAD = 4  # tars of a source fetched at once, ahead of the stream
OPEN_FILES = 8  # an open file keeps its disk space, even when the cache has dropped it


@dataclass(frozen=True)
class CacheConfig:
    """Where tars are staged, and how many GB of them are kept."""

    folder: str = "data/cache"
    gigabytes: float = 200


def is_remote(root: str | Path) -> bool:
    return "://" in str(root)


def open_shards(root: str | Path, source: str, *, cache: CacheConfig) -> Shards:
    """Raises `UserError` where there is no finished build of this source."""
    return RemoteShards(f"{str(root).rstrip('/')}/{source}", cache) if is_remote(root) else Shards(Path(root) / source)


class RemoteFileNotFound(UserError):
    """There is no such file at the address."""


class RemoteShards(Shards):
    """`Shards` whose tars stand at `url`."""

    open_files = OPEN_FILES

    def __init__(self, url: str, cache: CacheConfig):
        self.url, self.cache = url, cache
        folder = Path(cache.folder) / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        with _locked(folder / "index"):
            _fetch_index(url, folder)
        super().__init__(folder)
        if len(self) != sum(tar["records"] for tar in self.manifest["shards"]):
            raise UserError(f"{url}/index.arrow has {len(self)} rows, its manifest speaks of another number; put the whole build there")
        self._expected: dict[int, int] = {}  # shard -> process that is fetching it ahead

    @property
    def where(self) -> str:
        return self.url

    def __reduce__(self):
        return RemoteShards, (self.url, self.cache)

    def expect(self, row: int) -> None:
        """Begins to fetch the shard of this row unless it is there; does not wait."""
        number = self._place(row)[0]
        if self._expected.get(number) != os.getpid() and not self._path(number).exists():
            self._expected[number] = os.getpid()
            _waiting(self.url, os.getpid()).put(partial(self._fetch_ahead, number))

    def _fetch_ahead(self, number: int) -> None:
        try:
            os.close(self._descriptor(number))
        except UserError:
            pass  # whoever needs it tries again, and tells
        finally:
            self._expected.pop(number, None)

    def _descriptor(self, number: int) -> int:
        """The tar, open, fetched first where it is not in the cache."""
        path = self._path(number)
        tar = self.manifest["shards"][number]
        with contextlib.suppress(FileNotFoundError):
            return _opened(path, tar["bytes"])
        with _locked(path):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                return _opened(path, tar["bytes"])
            _make_room(self.cache, tar["bytes"])
            fetch_file(f"{self.url}/{tar['name']}", path, size=tar["bytes"], sha256=tar["sha256"])
            return _opened(path, tar["bytes"])


def fetch_file(
    url: str, path: Path, *, size: int | None = None, sha256: str | None = None, read: Callable[[Path], Any] | None = None
) -> None:
    """The file under its final name once it is whole; a lost connection is tried again, a wrong checksum once. Raises `UserError`.

    `read` raises a `ValueError` for a file that is not whole: not every server says how long one is.
    """
    files, name = _filesystem(url)
    coming, said, wrong = path.with_name(path.name + ".part"), "", 0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        try:
            files.get_file(name, str(coming))
        except FileNotFoundError:
            raise RemoteFileNotFound(f"{url} does not exist") from None
        except Exception as error:  # each file system raises what it likes
            said = f"{type(error).__name__} {error}".strip()[:200]
            continue
        try:
            _ = read and read(coming)
        except ValueError as error:
            said = f"what came is not it, or not all of it: {str(error).splitlines()[0]}"
            continue
        found = coming.stat().st_size
        if size is not None and found != size:
            said = f"{found:,} bytes came, the manifest says {size:,}"
        elif sha256 and _digest(coming) != sha256:
            said, wrong = "its checksum is not that of the manifest", wrong + 1
            if wrong == 2:
                raise UserError(f"{url} came twice with another checksum than its manifest's; copy this shard there again")
        else:
            coming.replace(path)
            return
    raise UserError(f"{url} could not be fetched in {ATTEMPTS} attempts ({said}); the same command continues when it can be reached")


def _fetch_index(url: str, folder: Path) -> None:
    """Manifest, and the index where it is not that of the build and audit that stand there now."""
    root, _, source = url.rpartition("/")
    try:
        fetch_file(f"{url}/manifest.json", folder / "manifest.new", read=_tars)
    except RemoteFileNotFound:
        raise RemoteFileNotFound(f"data.root={root} has no shards of '{source}': {url}/manifest.json does not exist") from None
    state = (folder / "manifest.new").read_bytes()
    try:
        fetch_file(f"{url}/audit.json", folder / "audit.json")
        state += (folder / "audit.json").read_bytes()
    except RemoteFileNotFound:  # shards that were not audited have none
        (folder / "audit.json").unlink(missing_ok=True)
    held, digest = folder / "index.sha256", hashlib.sha256(state).hexdigest()  # of manifest and audit, which the index goes with
    if not held.exists() or held.read_text() != digest or not _readable(folder / "index.arrow", _index):
        fetch_file(f"{url}/index.arrow", folder / "index.arrow", read=_index)
        held.write_text(digest)
    before, now = (_tars(path) if _readable(path, _tars) else {} for path in (folder / "manifest.json", folder / "manifest.new"))
    for path in folder.glob("*.tar"):
        if before.get(path.name) != now.get(path.name):  # of another build under the same name
            path.unlink(missing_ok=True)
    (folder / "manifest.new").replace(folder / "manifest.json")


def _tars(manifest: Path) -> dict[str, str]:
    """Name and checksum of each shard."""
    try:
        return {tar["name"]: tar["sha256"] for tar in json.loads(manifest.read_bytes())["shards"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"no manifest of shards ({error})") from None


def _index(path: Path) -> int:
    """Its rows; Arrow writes what it needs to open a file at the end of it."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).num_rows


def _readable(path: Path, read: Callable[[Path], Any]) -> bool:
    """Whether a file of the cache is there and whole: a machine may have gone down while it was written."""
    try:
        read(path)
    except (OSError, ValueError):
        return False
    return True


def _make_room(cache: CacheConfig, size: int) -> None:
    """Drops the tars that were not used for longest until `size` more bytes fit. Who reads one has it open and loses nothing."""
    root = Path(cache.folder)
    with _locked(root / "room"):
        held = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in root.glob("*/*.tar"))
        over = sum(one for _, one, _ in held) + size - cache.gigabytes * 1e9
        for _, one, path in held:
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= one


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process or thread at a time; the lock of a killed one is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile holds the file open too


def _opened(path: Path, size: int) -> int:
    """Raises FileNotFoundError for one that is not whole too."""
    descriptor = os.open(path, os.O_RDONLY)
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise FileNotFoundError(path)
    os.utime(descriptor)  # used just now
    return descriptor


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _waiting(url: str, process: int) -> "SimpleQueue[Callable[[], None]]":
    """What the threads that fetch ahead have to do; one queue per process, since threads do not survive a fork. They are daemons:
    nobody waits for what is fetched ahead when a run ends."""
    queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
    for _ in range(AHEAD):
        threading.Thread(target=_work, args=(queue,), daemon=True).start()
    return queue


def _work(queue: "SimpleQueue[Callable[[], None]]") -> None:
    while True:
        queue.get()()


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        import aiohttp  # costs a third of a second, which only this needs

        return url_to_fs(url, client_kwargs={"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)})
    if scheme not in fsspec.available_protocols():
        raise UserError(f"data.root={url}: '{scheme}' is no scheme that can be read{suggest(scheme, ('http', 'https', 's3', 'gs'))}")
    return url_to_fs(url)
