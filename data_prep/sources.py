"""What `sources.yaml` says about a dataset, typed; and what stands for it where the user brings his own folder."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from src.data.record import SPLITS
from src.runtime.errors import UserError, suggest

SOURCES_YAML = Path(__file__).with_name("sources.yaml")


@dataclass(frozen=True)
class Licence:
    name: str = "unverified"
    source: str = ""  # `from:` in the file: where the licence was read
    redistribute: str = "unverified"  # yes, no or unverified
    non_commercial: str = "unverified"


@dataclass(frozen=True)
class Source:
    """One dataset: where it is, what it may be used for, and how it is read."""

    name: str
    reader: str
    files: dict[str, list[str]]  # split -> globs of its tables, relative to the raw folder
    columns: dict[str, str] = field(default_factory=dict)  # what a table calls image, question, answer, ...
    title: str = ""
    images: bool = True  # False: text only
    hub: str = ""  # dataset id on the Hugging Face hub
    zenodo: int = 0  # record number
    urls: dict[str, str] = field(default_factory=dict)  # path -> address
    also: list[str] = field(default_factory=list)  # globs of what the reader needs besides its tables
    unpack: bool = False  # zip files after the download, tar.gz files that were put there by hand
    pages: list[str] = field(default_factory=list)  # addresses for people
    revision: dict[str, str] = field(default_factory=dict)  # value, and from
    licence: Licence = field(default_factory=Licence)
    gated: str = "unverified"
    counts: dict[str, Any] = field(default_factory=dict)  # split -> expected rows, and from
    steps: str = ""  # what a person must do by hand
    citation: str = ""
    notes: str = ""

    def tables(self, raw: Path, split: str) -> list[Path]:
        """The table files of a split that are there, sorted within each glob."""
        return [path for glob in self.files.get(split, []) for path in sorted(raw.glob(glob))]

    @property
    def by_hand(self) -> bool:
        return not (self.hub or self.zenodo or self.urls)

    @property
    def pinned(self) -> str:
        """The revision that was read at a named source, if any."""
        value = str(self.revision.get("value", "unverified"))
        return "" if value == "unverified" else value

    @property
    def patterns(self) -> list[str]:
        """Globs of all files that the reader opens."""
        return [glob for globs in self.files.values() for glob in globs] + self.also

    @property
    def expected(self) -> dict[str, int]:
        return {split: self.counts[split] for split in SPLITS if split in self.counts}


def load_sources(path: Path = SOURCES_YAML) -> dict[str, Source]:
    """Every entry of `sources.yaml`; an unknown key or split in it is a `UserError`."""
    return {name: _source(name, entry) for name, entry in yaml.load(path.read_text(), Loader=yaml.CSafeLoader).items()}


def find_source(name: str, raw: Path) -> Source:
    """The entry of a source; a folder `raw/name` that holds jsonl or parquet tables needs none."""
    entries = load_sources()
    if name in entries:
        return entries[name]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"source '{name}' may hold letters, digits, '-' and '_' only")
    for layout in ("jsonl", "hf_parquet"):
        own = entries[layout]
        if any(own.tables(raw / name, split) for split in SPLITS):
            return Source(name=name, reader=layout, files=own.files, columns=own.columns, licence=own.licence)
    raise UserError(
        f"source '{name}' is not in sources.yaml, and {raw / name} holds neither train.jsonl, val.jsonl or test.jsonl "
        f"nor parquet tables{suggest(name, entries)}"
    )


def _source(name: str, entry: dict[str, Any]) -> Source:
    allowed = {one.name for one in fields(Source)} - {"name"}
    for key in entry:
        if key not in allowed:
            raise UserError(f"sources.yaml: {name} has an unknown key '{key}'{suggest(key, allowed)}")
    for split in entry["files"]:
        if split not in SPLITS:
            raise UserError(f"sources.yaml: {name}.files has an unknown split '{split}'{suggest(split, SPLITS)}")
    for split in entry.get("counts", {}):
        if split not in (*SPLITS, "from"):
            raise UserError(f"sources.yaml: {name}.counts has an unknown split '{split}'{suggest(split, SPLITS)}")
    licence = {"source" if key == "from" else key: _word(value) for key, value in entry.get("licence", {}).items()}
    files = {split: [globs] if isinstance(globs, str) else globs for split, globs in entry["files"].items()}
    return Source(
        **{**entry, "name": name, "files": files, "licence": Licence(**licence), "gated": _word(entry.get("gated", "unverified"))}
    )


def _word(value: Any) -> str:
    """YAML reads a bare yes or no as a boolean."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
