"""The state that a build depends on. A folder of shards is only continued by a build with the same state."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.build import chunking, encode, serialize, shard_writer, token_counts
from data_prep.readers import READERS, chat, hash_set, json_stream, mimic_sections, raw_files, rows, tables, zip_members
from data_prep.sources import Source
from src.data import near_duplicates, record
from src.data.shards import SCHEMA
from src.runtime.atomic_file import atomic_file
from src.runtime.errors import UserError

# The modules that decide the bytes of any source, together with its reader.
BYTE_MODULES = (
    chat,
    hash_set,
    json_stream,
    mimic_sections,
    raw_files,
    rows,
    tables,
    zip_members,
    chunking,
    encode,
    near_duplicates,
    serialize,
    token_counts,
    shard_writer,
    record,
)


def build_state(raw: Path, entry: Source, settings: dict[str, Any]) -> str:
    """A digest of everything that decides the bytes: raw files (name, size and time), settings, entry and code."""
    deciding = {key: value for key, value in asdict(entry).items() if key not in ("exclude", "subsets")}  # these two concern training
    digest = hashlib.sha256(json.dumps([settings, deciding, str(SCHEMA)], sort_keys=True).encode())
    for module in (sys.modules[READERS[entry.reader].__module__], *BYTE_MODULES):
        digest.update(Path(str(module.__file__)).read_bytes())
    for folder, folders, files in os.walk(raw):
        folders.sort()
        files.sort()
        for path in (Path(folder, name) for name in files):  # a generator, because a folder may hold millions of images
            stat = path.stat() if path.exists() else path.lstat()
            digest.update(f"{path.relative_to(raw)} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def can_resume(folder: Path, state: str) -> bool:
    """Whether `folder` holds a build with this state. A build with another state is removed first.

    Raises `UserError` if the folder holds tars of another origin.
    """
    path = folder / "parts" / "state.json"
    if path.exists():
        if json.loads(path.read_bytes())["state"] == state:
            return True
        for name in ("manifest.json", "parts/state.json", "index.arrow", "subsets.arrow", "audit.json", "quarantine.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for old in chain(folder.glob("parts/*-??????.arrow"), folder.glob("*-??????.tar")):
            old.unlink()
    elif any(folder.glob("*.tar")):
        raise UserError(f"{folder}: contains tars that this command did not build; give another out= or remove them")
    with atomic_file(path) as file:
        file.write(json.dumps({"state": state}).encode())
    return False
