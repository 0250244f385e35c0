"""Builds the folder of shards of one dataset."""

import json
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.build import chunking
from data_prep.build.finalize import finalize_source
from data_prep.build.process_pool import Map
from data_prep.build.serialize import SerializedChunk, serialize_chunk
from data_prep.build.shard_writer import is_finished, write_shard
from data_prep.build.state import build_state, can_resume
from data_prep.build.token_counts import TokenizerFile
from data_prep.readers import READERS
from data_prep.readers.hash_set import HashSet
from data_prep.readers.raw_files import rows_in
from data_prep.sources import Source
from src.data.record import PHANTOM_MARKER, SPLITS
from src.data.shards import SUBSETS
from src.runtime.atomic_file import explain_full_disk
from src.runtime.errors import UserError
from src.runtime.progress import Progress

PLAIN_KEY = re.compile(r"[A-Za-z0-9_./-]{1,80}")


@dataclass
class BuildConfig:
    """Builds the shards of datasets. To continue an interrupted build, run the same command again.

    python -m data_prep.shards sources=pathvqa,pubmedqa raw=data/raw out=data/shards workers=2

    sources           names from data_prep/sources.yaml, or your own folders below raw=, separated by commas
    raw               folder that holds RAW/<source>
    out               folder to write OUT/<source> to
    workers           processes that encode images (default 2)
    max_side          longer side of an image in pixels, at most (default 384)
    quality           JPEG quality of images that have to be encoded (default 90)
    tokenizer         folder or hub id of a language model; its tokenizer counts the tokens of each text (default: not counted)
    quarantine_limit  largest share of unusable rows before a build fails (default 0.05)
    executor          process: a pool of processes on this machine (default); slurm: jobs of that many processes on a cluster
    jobs              Slurm jobs that share the shards of each source (default 4)
    options           options of readers, in place of those in sources.yaml: options.<source>.<option>=<value>, for example
                      options.mimic_cxr.section=findings, or options.brain.question="which tumour, if any?" for a folder of classes
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
    options: dict[str, dict[str, str]] = field(default_factory=dict)


def build_source(entry: Source, config: BuildConfig, map_chunks: Map, tokenizer: TokenizerFile | None = None) -> dict[str, Any]:
    """Builds or completes the shards of one source; returns its manifest. Raises `UserError` if the raw folder holds no rows."""
    raw, folder = config.raw / entry.name, config.out / entry.name
    with explain_full_disk(entry.name, folder):
        resumed = prepare_folder(entry, config, tokenizer)
        manifest = json.loads((folder / "manifest.json").read_bytes()) if resumed and (folder / "manifest.json").exists() else {}
        indices = ["index.arrow", *([SUBSETS] if "subsets" in manifest else [])]
        if manifest and all((folder / name).exists() for name in indices):
            if not all(is_finished(folder, Path(tar["name"]).stem) for tar in manifest["shards"]):
                write_shards(entry, config, map_chunks, tokenizer)  # rewrites the same bytes: index, audit and manifest stay valid
            return manifest
        shards = write_shards(entry, config, map_chunks, tokenizer)
        if not shards:
            globs = ", ".join(chain(*entry.files.values()))
            raise UserError(f"source '{entry.name}': {raw} holds no rows; put files there that match one of {globs}")
        extra: dict[str, Any] = {"phantom": (raw / PHANTOM_MARKER).exists(), "credentialed": entry.credentialed}
        extra["tokenizer"] = tokenizer.identity if tokenizer else None
        return finalize_source(
            folder, shards, entry, settings=_settings(entry, config), extra=extra, quarantine_limit=config.quarantine_limit
        )


def prepare_folder(entry: Source, config: BuildConfig, tokenizer: TokenizerFile | None) -> bool:
    """Whether the folder holds a part of the same build; removes a build with another state."""
    settings = _settings(entry, config) | {"tokenizer": tokenizer.identity["sha256"] if tokenizer else ""}
    return can_resume(config.out / entry.name, build_state(config.raw / entry.name, entry, settings))


def _settings(entry: Source, config: BuildConfig) -> dict[str, Any]:
    limits = {
        "max_side": config.max_side,
        "quality": config.quality,
        "shard_rows": chunking.SHARD_ROWS,
        "shard_bytes": chunking.SHARD_BYTES,
    }
    return limits | ({"options": entry.options} if entry.options else {})


def write_shards(
    entry: Source, config: BuildConfig, map_chunks: Map, tokenizer: TokenizerFile | None, *, part: int = 0, parts: int = 1
) -> list[str]:
    """Reads every split to its end and writes the shards that are not finished; returns the names of all shards.

    With `parts` above 1, this process writes every `parts`-th shard only, starting with number `part`.
    """
    raw, folder = config.raw / entry.name, config.out / entry.name
    pending: dict[str, bool] = {}  # shard -> whether this process has to write it

    def pending_chunks() -> Iterator[chunking.Chunk]:
        keys = HashSet()
        for split in SPLITS:
            for chunk in chunking.to_chunks(READERS[entry.reader](raw, split, entry), split=split, keys=keys):
                if chunk.shard not in pending:
                    pending[chunk.shard] = len(pending) % parts == part and not is_finished(folder, chunk.shard)
                progress.update(chunk.counts["in"])
                if pending[chunk.shard]:
                    yield chunk

    file = tokenizer.file if tokenizer else None
    serialize = partial(serialize_chunk, max_side=config.max_side, quality=config.quality, tokenizer=file)
    with withheld_messages(entry), Progress(total=_expected_rows(entry, raw), unit="row", desc=entry.name) as progress:
        results = map_chunks(serialize, pending_chunks())
        if entry.credentialed:
            results = (_without_texts(*result) for result in results)
        for first in results:
            write_shard(folder, first[0].shard, chain([first], _rest_of_shard(first[0], results)))
    return list(pending)


def _without_texts(chunk: chunking.Chunk, serialized: SerializedChunk) -> tuple[chunking.Chunk, SerializedChunk]:
    """A result with rejected rows that hold no text."""
    rejected, more = ([without_text(*pair) for pair in part.rejected] for part in (chunk, serialized))
    return replace(chunk, rejected=rejected), replace(serialized, rejected=more)


def without_text(key: str, reason: str) -> tuple[str, str]:
    """Key and reason of a rejected row without any text of it: the reason loses its detail, and a key that is no plain identifier (a reader
    may use the fields of a broken row as its key) becomes a hash."""
    return key if PLAIN_KEY.fullmatch(key) else f"row-{chunking.hash64(key):016x}", reason.partition(":")[0]


@contextmanager
def withheld_messages(entry: Source) -> Iterator[None]:
    """Replaces the message of an unexpected error, which may quote a row, by its place in the code if the source is credentialed."""
    try:
        yield
    except (UserError, OSError):  # these name files
        raise
    except Exception as error:
        if not entry.credentialed:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"source '{entry.name}': {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}; the message is withheld, "
            "because it may quote a credentialed record; correct the reader or the raw data there, and run the same command again"
        ) from None


def _rest_of_shard(
    chunk: chunking.Chunk, results: Iterator[tuple[chunking.Chunk, SerializedChunk]]
) -> Iterator[tuple[chunking.Chunk, SerializedChunk]]:
    """The results that follow `chunk` in its shard."""
    while not chunk.last:
        chunk, serialized = next(results)
        yield chunk, serialized


def _expected_rows(entry: Source, raw: Path) -> int | None:
    """The rows of the tables in the raw folder; for tables that cannot be counted cheaply, the published count of the split."""
    table_rows = {split: [rows_in(table) for table in entry.tables(raw, split)] for split in SPLITS}
    rows = [entry.expected.get(split) if None in counts else sum(filter(None, counts)) for split, counts in table_rows.items() if counts]
    return None if None in rows else sum(filter(None, rows))
