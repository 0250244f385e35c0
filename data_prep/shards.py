"""Raw datasets -> shards, index and manifest: `python -m data_prep.shards sources=pathvqa,pubmedqa raw=data/raw out=data/shards`."""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from data_prep import arguments, cut, encode, sources
from data_prep.atomic import atomic
from data_prep.merge import COUNTS, merge
from data_prep.pack import pack
from data_prep.pool import Map, Pack, workers
from data_prep.raw_files import rows_in
from data_prep.readers import READERS
from data_prep.seen import Seen
from data_prep.write import finished, write_shard
from src.data import record
from src.data.record import SPLITS
from src.data.shards import SCHEMA
from src.errors import UserError, command, nearest


@dataclass
class Build:
    """Builds the shards of datasets; an interrupted build is continued by the same command.

    python -m data_prep.shards sources=pathvqa,pubmedqa raw=data/raw out=data/shards workers=2

    sources           names out of data_prep/sources.yaml, or folders of your own under raw=, separated by commas
    raw               folder that holds RAW/<source>
    out               folder that gets OUT/<source>
    workers           processes that encode images (default 2)
    max_side          pixels; the longer side of an image is at most this (default 384)
    quality           JPEG quality of images that have to be encoded (default 90)
    quarantine_limit  share of rows that may be unusable before a build fails (default 0.05)
    executor          process: a pool of processes on this machine (default)
    """

    sources: list[str]
    raw: Path
    out: Path
    workers: int = 2
    max_side: int = 384
    quality: int = 90
    quarantine_limit: float = 0.05
    executor: str = "process"


@command
def main(words: list[str]) -> None:
    build_all(arguments.parse(Build, words))


def build_all(config: Build) -> dict[str, dict[str, Any]]:
    """The manifests by source. Every source is looked up before the first is built."""
    _validate(config)
    entries = [sources.find(name, config.raw) for name in config.sources]
    for entry in entries:
        if not (config.raw / entry.name).is_dir():
            raise UserError(f"source '{entry.name}' needs the raw folder {config.raw / entry.name}, which does not exist")
    manifests = {}
    with workers(config.workers) as mapped:
        for entry in entries:
            manifests[entry.name] = build(entry, config, mapped)
            _print_table(entry, manifests[entry.name])
    return manifests


def build(entry: sources.Source, config: Build, mapped: Map) -> dict[str, Any]:
    raw, folder = config.raw / entry.name, config.out / entry.name
    settings = {"max_side": config.max_side, "quality": config.quality, "shard_rows": cut.SHARD_ROWS, "shard_bytes": cut.SHARD_BYTES}
    try:
        if _continues(folder, _state(raw, entry, settings)) and (folder / "manifest.json").exists():
            return json.loads((folder / "manifest.json").read_bytes())
        function = partial(pack, max_side=config.max_side, quality=config.quality)
        shards = _write_shards(entry, raw, folder, mapped=mapped, function=function)
        if not shards:
            raise UserError(f"source '{entry.name}': {raw} holds no record; looked for {', '.join(chain(*entry.files.values()))}")
        return merge(folder, shards, entry, settings=settings, quarantine_limit=config.quarantine_limit)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space is left for {folder}; free some and run the same command again, finished shards are kept") from None
        raise UserError(f"source '{entry.name}': {error.strerror or error}: {error.filename}") from None


def _write_shards(entry: sources.Source, raw: Path, folder: Path, *, mapped: Map, function: Pack) -> list[str]:
    """Reads every split to its end; gives the names of all shards, including those that a former run had finished."""
    there: dict[str, bool] = {}  # shard -> whether a former run had finished it

    def chunks() -> Iterator[cut.Chunk]:
        keys = Seen()
        for split in SPLITS:
            for chunk in cut.cut(READERS[entry.reader](raw, split, entry), split=split, keys=keys):
                if chunk.shard not in there:
                    there[chunk.shard] = finished(folder, chunk.shard)
                bar.update(chunk.counts["in"])
                if not there[chunk.shard]:
                    yield chunk

    with tqdm(total=_rows_expected(entry, raw), unit=" rows", desc=entry.name, disable=None) as bar:
        packed = mapped(function, chunks())
        for first in packed:
            write_shard(folder, first[0].shard, chain([first], _until_last(first, packed)))
    return list(there)


def _until_last(first: tuple, packed: Iterator[tuple]) -> Iterator[tuple]:
    """The chunks that follow `first` in its shard."""
    chunk = first[0]
    while not chunk.last:
        chunk, part = next(packed)
        yield chunk, part


def _state(raw: Path, entry: sources.Source, settings: dict[str, Any]) -> str:
    """A digest of all that the bytes depend on: raw files (by name, size and time), settings, entry and code."""
    state = hashlib.sha256(json.dumps([settings, asdict(entry), str(SCHEMA)], sort_keys=True).encode())
    for module in (sys.modules[READERS[entry.reader].__module__], cut, encode, record):
        state.update(Path(str(module.__file__)).read_bytes())
    for folder, folders, files in os.walk(raw):
        folders.sort()
        for path in sorted(Path(folder, name) for name in files):
            stat = path.stat() if path.exists() else path.lstat()
            state.update(f"{path.relative_to(raw)} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return state.hexdigest()


def _continues(folder: Path, state: str) -> bool:
    """Whether `folder` holds a build of this very state. A build of another state is removed first."""
    path = folder / "parts" / "state.json"
    if path.exists():
        if json.loads(path.read_bytes())["state"] == state:
            return True
        for name in ("manifest.json", "parts/state.json", "index.arrow", "quarantine.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for old in chain(folder.glob("parts/*-??????.arrow"), folder.glob("*-??????.tar")):
            old.unlink()
    elif any(folder.glob("*.tar")):
        raise UserError(f"{folder} holds tars that this command did not build; give another out= or remove them")
    with atomic(path) as file:
        file.write(json.dumps({"state": state}).encode())
    return False


def _validate(config: Build) -> None:
    if not config.sources:
        raise UserError("sources= names no source")
    if config.executor != "process":
        raise UserError(f"executor={config.executor!r}{nearest(config.executor, ['process'])}")
    for name, low, high in (("workers", 1, 1024), ("max_side", encode.MIN_SIDE, 65_500), ("quality", 1, 100), ("quarantine_limit", 0, 1)):
        if not low <= getattr(config, name) <= high:
            raise UserError(f"{name}={getattr(config, name)} is out of range; allowed: {low} to {high}")
    if config.raw.resolve() == config.out.resolve():
        raise UserError(f"out={config.out} is the raw folder; give another one")


def _rows_expected(entry: sources.Source, raw: Path) -> int | None:
    known = [rows_in(table) for split in SPLITS for table in entry.tables(raw, split)]
    return None if None in known else sum(known)  # type: ignore[arg-type]


def _print_table(entry: sources.Source, manifest: dict[str, Any]) -> None:
    table = Table("source", "split", *(Column(name, justify="right") for name in (*COUNTS, "expected")), box=None, pad_edge=False)
    for split, counts in manifest["counts"].items():
        if counts["in"] or split in entry.expected:
            expected = entry.expected.get(split)
            table.add_row(entry.name, split, *(f"{counts[name]:,}" for name in COUNTS), f"{expected:,}" if expected else "")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
