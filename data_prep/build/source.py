"""One dataset -> its folder of shards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.build import chunking
from data_prep.build.finalize import finalize_source
from data_prep.build.hash_set import HashSet
from data_prep.build.process_pool import Map
from data_prep.build.serialize import serialize_chunk
from data_prep.build.shard_writer import is_finished, write_shard
from data_prep.build.state import build_state, can_resume
from data_prep.build.token_counts import TokenizerFile
from data_prep.readers import READERS
from data_prep.readers.raw_files import rows_in
from data_prep.sources import Source
from src.data.record import PHANTOM_MARKER, SPLITS
from src.runtime.atomic_file import explain_full_disk
from src.runtime.errors import UserError
from src.runtime.progress import Progress


@dataclass
class BuildConfig:
    """Builds the shards of datasets; an interrupted build is continued by the same command.

    python -m data_prep.shards sources=pathvqa,pubmedqa raw=data/raw out=data/shards workers=2

    sources           names out of data_prep/sources.yaml, or folders of your own under raw=, separated by commas
    raw               folder that holds RAW/<source>
    out               folder that gets OUT/<source>
    workers           processes that encode images (default 2)
    max_side          pixels; the longer side of an image is at most this (default 384)
    quality           JPEG quality of images that have to be encoded (default 90)
    tokenizer         folder or hub id of a language model; the index then holds the tokens of each text (default: not counted)
    quarantine_limit  share of rows that may be unusable before a build fails (default 0.05)
    executor          process: a pool of processes on this machine (default); slurm: jobs of that many processes on a cluster
    jobs              Slurm jobs that share the shards of each source (default 4)
    """

    sources: list[str]
    raw: Path
    out: Path
    workers: int = 2
    max_side: int = 384
    quality: int = 90
    tokenizer: str = ""
    quarantine_limit: float = 0.05
    executor: str = "process"
    jobs: int = 4


def build_source(entry: Source, config: BuildConfig, mapped: Map, vocabulary: TokenizerFile | None = None) -> dict[str, Any]:
    raw, folder = config.raw / entry.name, config.out / entry.name
    with explain_full_disk(entry.name, folder):
        continued = prepare_folder(entry, config, vocabulary)
        if continued and (folder / "manifest.json").exists() and (folder / "index.arrow").exists():
            manifest = json.loads((folder / "manifest.json").read_bytes())
            if not all(is_finished(folder, Path(tar["name"]).stem) for tar in manifest["shards"]):
                write_shards(entry, config, mapped, vocabulary)  # the same bytes again: index, audit and manifest stay true
            return manifest
        shards = write_shards(entry, config, mapped, vocabulary)
        if not shards:
            raise UserError(f"source '{entry.name}': {raw} holds no record; looked for {', '.join(chain(*entry.files.values()))}")
        beside = {"phantom": (raw / PHANTOM_MARKER).exists(), "tokenizer": vocabulary.identity if vocabulary else None}
        return finalize_source(folder, shards, entry, settings=_settings(config), beside=beside, quarantine_limit=config.quarantine_limit)


def prepare_folder(entry: Source, config: BuildConfig, vocabulary: TokenizerFile | None) -> bool:
    """Whether the folder holds a part of this very build; removes another one."""
    settings = _settings(config) | {"tokenizer": vocabulary.identity["sha256"] if vocabulary else ""}
    return can_resume(config.out / entry.name, build_state(config.raw / entry.name, entry, settings))


def _settings(config: BuildConfig) -> dict[str, Any]:
    return {"max_side": config.max_side, "quality": config.quality, "shard_rows": chunking.SHARD_ROWS, "shard_bytes": chunking.SHARD_BYTES}


def write_shards(
    entry: Source, config: BuildConfig, mapped: Map, vocabulary: TokenizerFile | None, *, part: int = 0, parts: int = 1
) -> list[str]:
    """Reads every split to its end and writes the shards that no former run had finished; of those only each `parts`-th, from
    number `part`. Gives the names of all."""
    raw, folder = config.raw / entry.name, config.out / entry.name
    left: dict[str, bool] = {}  # shard -> whether it is to be written here

    def chunks() -> Iterator[chunking.Chunk]:
        keys = HashSet()
        for split in SPLITS:
            for chunk in chunking.to_chunks(READERS[entry.reader](raw, split, entry), split=split, keys=keys):
                if chunk.shard not in left:
                    left[chunk.shard] = len(left) % parts == part and not is_finished(folder, chunk.shard)
                progress.update(chunk.counts["in"])
                if left[chunk.shard]:
                    yield chunk

    with Progress(total=_rows_expected(entry, raw), unit="row", desc=entry.name) as progress:
        tokenizer = vocabulary.file if vocabulary else None
        packed = mapped(partial(serialize_chunk, max_side=config.max_side, quality=config.quality, tokenizer=tokenizer), chunks())
        for first in packed:
            write_shard(folder, first[0].shard, chain([first], _until_last(first, packed)))
    return list(left)


def _until_last(first: tuple, packed: Iterator[tuple]) -> Iterator[tuple]:
    """The chunks that follow `first` in its shard."""
    chunk = first[0]
    while not chunk.last:
        chunk, part = next(packed)
        yield chunk, part


def _rows_expected(entry: Source, raw: Path) -> int | None:
    """By the tables that are there, or, where they do not tell, by what is known of the dataset."""
    there = {split: [rows_in(table) for table in entry.tables(raw, split)] for split in SPLITS}
    rows = [entry.expected.get(split) if None in found else sum(filter(None, found)) for split, found in there.items() if found]
    return None if None in rows else sum(filter(None, rows))
