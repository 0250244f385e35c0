"""Shards at an address (https://, s3:// or any other scheme of fsspec): index and manifest are fetched, tars are cached when needed.

Whole tars are fetched into a cache on the local disk, ahead of the stream and in its order. Processes share the cache: a file is fetched
under a lock, compared with the checksum of the manifest, and renamed. The least recently used tars make room for new ones.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs

from src.data.shard_cache import make_room, mark_as_used, open_cached
from src.data.shards import SUBSETS, Shards
from src.runtime.errors import UserError, suggest
from src.runtime.file_lock import file_lock
from src.runtime.hashing import file_sha256

ATTEMPTS, FIRST_DELAY = 6, 0.5  # per file; seconds before the second attempt, doubled each time
TIMEOUT = 60  # seconds without a byte after which a connection counts as lost
PREFETCH_THREADS = 4  # tars of a source that are fetched at once, ahead of the stream


@dataclass(frozen=True)
class CacheConfig:
    """Folder of the cached tars, and its maximum size."""

    folder: str = "data/cache"
    gigabytes: float = 200


def is_remote(root: str | Path) -> bool:
    return "://" in str(root)


def open_shards(root: str | Path, source: str, *, cache: CacheConfig) -> Shards:
    """The shards of a source, local or remote. Raises `UserError` if there is no finished build of it."""
    return RemoteShards(f"{str(root).rstrip('/')}/{source}", cache) if is_remote(root) else Shards(Path(root) / source)


class RemoteFileNotFound(UserError):
    """There is no such file at the address."""


class RemoteShards(Shards):
    """`Shards` whose tars are stored at `url`."""

    def __init__(self, url: str, cache: CacheConfig):
        self.url, self.cache = url, cache
        folder = Path(cache.folder) / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        with file_lock(folder / "index"):
            _fetch_index(url, folder)
        super().__init__(folder)
        if len(self) != (records := sum(tar["records"] for tar in self.manifest["shards"])):
            raise UserError(f"{url}/index.arrow: {len(self):,} rows, the manifest states {records:,}; upload the whole build again")
        self._prefetching: dict[int, int] = {}  # shard -> process that is fetching it

    @property
    def location(self) -> str:
        return self.url

    def __reduce__(self):
        return RemoteShards, (self.url, self.cache)

    def prefetch(self, rows: np.ndarray) -> None:
        """Marks the cached shards of these rows as used and starts to fetch the others, in their order; does not wait."""
        numbers = dict.fromkeys(self._spans[0][rows].tolist())
        for number in [number for number in numbers if not mark_as_used(self._path(number))]:
            if self._prefetching.get(number) != os.getpid():
                self._prefetching[number] = os.getpid()
                _prefetch_queue(self.url, os.getpid()).put(partial(self._prefetch_shard, number))

    def _prefetch_shard(self, number: int) -> None:
        try:
            with contextlib.suppress(UserError):  # the reader of the shard tries again and reports the error
                os.close(self._descriptor(number))
        finally:
            self._prefetching.pop(number, None)

    def _open(self, number: int) -> int:
        if number not in self._files:  # tars that the cache has removed occupy the disk until they are closed
            for removed in [open_number for open_number, descriptor in self._files.items() if not os.fstat(descriptor).st_nlink]:
                os.close(self._files.pop(removed))
        return super()._open(number)

    def _descriptor(self, number: int) -> int:
        """Descriptor of the open tar, which is fetched first if it is not cached."""
        path = self._path(number)
        tar = self.manifest["shards"][number]
        with contextlib.suppress(FileNotFoundError):
            return open_cached(path, tar["bytes"])
        with file_lock(path):
            while True:  # another process may have fetched it meanwhile, or removed it before it was opened
                with contextlib.suppress(FileNotFoundError):
                    return open_cached(path, tar["bytes"])
                make_room(self.cache.folder, tar["bytes"], limit=self.cache.gigabytes * 1e9)
                fetch_file(f"{self.url}/{tar['name']}", path, size=tar["bytes"], sha256=tar["sha256"])


def fetch_file(url: str, path: Path, *, size: int = 0, sha256: str = "", read: Callable[[Path], Any] | None = None) -> None:
    """Downloads a file; `path` exists only once it is complete. Raises `UserError`.

    A lost connection is retried `ATTEMPTS` times, a wrong size or checksum once. `read` raises a `ValueError` for a truncated file, since
    not every server states the size of a file.
    """
    files, name = _filesystem(url)
    partial_path, reason, mismatch = path.with_name(path.name + ".part"), "", ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_DELAY * 2 ** (attempt - 1))
        try:
            files.get_file(name, str(partial_path))
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise UserError(f"{url}: the bucket does not exist; correct the address") from None
            raise RemoteFileNotFound(f"{url} does not exist") from None
        except Exception as error:  # each file system has its own exceptions
            refused = isinstance(error, PermissionError) and not error.filename  # a file name is that of the cache
            if refused or type(error).__name__ == "NoCredentialsError":  # botocore's
                advice = "check the credentials, for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
                raise UserError(f"{url}: access was refused ({error}); {advice}") from None
            reason = f"{type(error).__name__} {error}".strip()[:200]
            continue
        try:
            _ = read and read(partial_path)
        except ValueError as error:
            reason = f"download is invalid or truncated: {str(error).splitlines()[0]}"
            continue
        if size and (received := partial_path.stat().st_size) != size:
            reason = f"it has {received:,} instead of {size:,} bytes"
        elif sha256 and file_sha256(partial_path) != sha256:
            reason = "the checksum differs from the manifest"
        else:
            partial_path.replace(path)
            return
        if reason == mismatch:
            raise UserError(f"{url}: {reason} in two downloads; it was changed or damaged, so upload this file again")
        mismatch = reason
    raise UserError(f"{url}: not fetched in {ATTEMPTS} attempts ({reason}); run the same command again when it can be reached")


def _fetch_index(url: str, folder: Path) -> None:
    """Fetches the manifest, and the index and sub-sets unless the cached ones belong to the same build and audit."""
    root, _, source = url.rpartition("/")
    try:
        fetch_file(f"{url}/manifest.json", folder / "manifest.new", read=_checksums)
    except RemoteFileNotFound:
        raise RemoteFileNotFound(f"data.root={root} has no shards of '{source}': {url}/manifest.json does not exist") from None
    state, index = (folder / "manifest.new").read_bytes(), {}
    try:
        fetch_file(f"{url}/audit.json", folder / "audit.json", read=lambda path: json.loads(path.read_bytes()))
        state += (audit := (folder / "audit.json").read_bytes())
        index = json.loads(audit).get("index", {})
    except RemoteFileNotFound:  # the shards were not audited
        (folder / "audit.json").unlink(missing_ok=True)
    cached, digest = folder / "index.sha256", hashlib.sha256(state).hexdigest()  # identifies the manifest and audit of the index
    if not cached.exists() or cached.read_text() != digest or not _is_whole(folder / "index.arrow", _num_rows):
        fetch_file(f"{url}/index.arrow", folder / "index.arrow", read=_num_rows, **index)
        cached.write_text(digest)
    if subsets := json.loads((folder / "manifest.new").read_bytes()).get("subsets"):
        path = folder / SUBSETS
        if not path.exists() or file_sha256(path) != subsets["sha256"]:
            fetch_file(f"{url}/{SUBSETS}", path, size=subsets["bytes"], sha256=subsets["sha256"])
    before = _checksums(folder / "manifest.json") if _is_whole(folder / "manifest.json", _checksums) else {}
    now = _checksums(folder / "manifest.new")
    for path in folder.glob("*.tar"):
        if before.get(path.name) != now.get(path.name):  # from another build under the same name
            path.unlink(missing_ok=True)
    (folder / "manifest.new").replace(folder / "manifest.json")


def _checksums(manifest: Path) -> dict[str, str]:
    """Name and checksum of each shard."""
    try:
        return {tar["name"]: tar["sha256"] for tar in json.loads(manifest.read_bytes())["shards"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a manifest of shards ({error})") from None


def _num_rows(index: Path) -> int:
    """Rows of an index. Arrow writes the footer last, so this fails for a truncated file."""
    return pa.ipc.open_file(pa.memory_map(str(index))).get_batch(0).num_rows


def _is_whole(path: Path, read: Callable[[Path], Any]) -> bool:
    """Whether a cached file exists and is complete; it may not be after a crash of the machine."""
    try:
        read(path)
    except (OSError, ValueError):
        return False
    return True


@cache
def _prefetch_queue(url: str, process: int) -> "SimpleQueue[Callable[[], None]]":
    """Tasks of the prefetching threads: one queue per process, since threads do not survive a fork. Daemons do not delay the exit."""
    queue: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def work() -> None:
        while True:
            queue.get()()

    for _ in range(PREFETCH_THREADS):
        threading.Thread(target=work, daemon=True).start()
    return queue


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        import aiohttp  # takes a third of a second, and only http needs it

        return url_to_fs(url, client_kwargs={"timeout": aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)})
    if scheme not in fsspec.available_protocols():
        raise UserError(f"data.root={url}: unknown scheme '{scheme}'{suggest(scheme, ('http', 'https', 's3', 'gs'))}")
    return url_to_fs(url)
