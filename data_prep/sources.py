"""Typed entries of `sources.yaml`, and default entries for folders of own data."""

import glob
import re
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from src.classification.layouts import SPLIT_FOLDERS, list_images
from src.data.record import SPLITS
from src.runtime.errors import UserError, suggest

SOURCES_YAML = Path(__file__).with_name("sources.yaml")
OWN_DATA = ("jsonl", "chat", "folder")  # entries without a dataset: the readers for folders of own data
TABLES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
NOT_TABLES = ("labels.csv", "dataset_dict.json", "state.json", "dataset_info.json", "dataset_infos.json")  # the last four of `datasets`
SPLIT_NAMES = SPLIT_FOLDERS | {"dev": "val"}


@dataclass(frozen=True)
class Licence:
    name: str = "unverified"
    source: str = ""  # `from:` in the file: where the licence is stated
    redistribute: str = "unverified"  # yes, no or unverified
    non_commercial: str = "unverified"
    credentialed: str = "no"  # yes: only credentialed users have access, and texts, weights and demos may not be passed on


@dataclass(frozen=True)
class Source:
    """One dataset: where to download it, its licence and how to read it."""

    name: str
    reader: str
    files: dict[str, list[str]]  # split -> globs of its tables, relative to the raw folder
    columns: dict[str, str] = field(default_factory=dict)  # image, question, answer, ... -> column name of the table
    title: str = ""
    options: dict[str, str] = field(default_factory=dict)  # of the reader: name -> value
    images: bool = True  # False: text only
    hub: str = ""  # dataset id on the Hugging Face hub
    zenodo: int = 0  # record number
    urls: dict[str, str] = field(default_factory=dict)  # path -> address
    also: list[str] = field(default_factory=list)  # globs of further files that the reader needs
    unpack: bool = False  # unpack zip files after the download, and tar.gz files that were downloaded by hand
    pages: list[str] = field(default_factory=list)  # web pages of the dataset
    revision: dict[str, str] = field(default_factory=dict)  # value, and from
    licence: Licence = field(default_factory=Licence)
    gated: str = "unverified"
    counts: dict[str, Any] = field(default_factory=dict)  # split -> expected rows, and from
    subsets: dict[str, int] = field(default_factory=dict)  # datasets that it was compiled from -> published records
    exclude: list[str] = field(default_factory=list)  # sub-sets that training leaves out unless mix.exclude names the source
    steps: str = ""  # manual steps
    citation: str = ""
    notes: str = ""

    def tables(self, raw: Path, split: str) -> list[Path]:
        """The existing table files of a split, sorted within each glob."""
        return [path for glob in self.files.get(split, []) for path in sorted(raw.glob(glob))]

    @property
    def credentialed(self) -> bool:
        return self.licence.credentialed == "yes"

    @property
    def by_hand(self) -> bool:
        """Whether the files have to be downloaded by hand."""
        return not (self.hub or self.zenodo or self.urls)

    @property
    def pinned(self) -> str:
        """The revision with a stated source; empty if there is none."""
        value = str(self.revision.get("value", "unverified"))
        return "" if value == "unverified" else value

    @property
    def patterns(self) -> list[str]:
        """Globs of all files that the reader opens."""
        return [glob for globs in self.files.values() for glob in globs] + self.also

    @property
    def expected(self) -> dict[str, int]:
        """Split -> expected rows, for the splits with a published count."""
        return {split: self.counts[split] for split in SPLITS if split in self.counts}


def load_sources(path: Path = SOURCES_YAML) -> dict[str, Source]:
    """All entries of `sources.yaml` by name. Raises `UserError` for an unknown key or split."""
    return {name: _parse_entry(name, entry) for name, entry in yaml.load(path.read_text(), Loader=yaml.CSafeLoader).items()}


def find_source(name: str, raw: Path) -> Source:
    """The entry of a source. A folder `raw/name` with own data, tables or one folder of images per class, needs no entry.

    Raises `UserError` if there is neither an entry nor such a folder.
    """
    entries = load_sources()
    if name in entries and name not in OWN_DATA:
        return entries[name]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"source '{name}': invalid name; use letters, digits, '-' and '_' only")
    folder = raw / name
    if not folder.is_dir():
        known = {*entries, *(path.name for path in raw.glob("*/"))} - set(OWN_DATA)
        raise UserError(f"source '{name}' is not in sources.yaml, and the folder {folder} does not exist{suggest(name, known)}")
    if tables := _own_tables(folder):
        files = {split: [glob.escape(str(path.relative_to(folder))) for path in tables[split]] for split in tables}
        return replace(entries["jsonl"], name=name, title=name, files=files)
    if (folder / "labels.csv").exists() or any(list_images(path) for path in folder.glob("[!.]*/")):
        return replace(entries["folder"], name=name, title=name)
    types = Counter(path.suffix.lower() or path.name for path in folder.rglob("*") if path.is_file()).most_common(5)
    contents = ", ".join(f"{count:,} {suffix}" for suffix, count in types) or "no files"
    raise UserError(
        f"source '{name}' is not in sources.yaml, and {folder} holds neither a table ({', '.join(TABLES)}, or saved by datasets) "
        f"nor a folder of images per class; it holds {contents}; see 'Your own data' in docs/data.md"
    )


def _own_tables(folder: Path) -> dict[str, list[Path]]:
    """Split -> tables of a folder of own data, in its top folder, in `data`, or as saved by `datasets` in a folder per split.

    The first word of the file name, or of its folder, is the split. A single table without a split is the training split.
    Raises `UserError` if a split would be ambiguous.
    """
    paths = [path for place in (folder, folder / "data") for suffix in TABLES for path in sorted(place.glob(f"[!.]*{suffix}"))]
    paths = [path for path in paths if path.name not in NOT_TABLES]
    saved = [path for at in ("data-*.arrow", "*/data-*.arrow") for path in sorted(folder.glob(at))]
    tables: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in [*paths, *saved]:
        name = path.parent.name if path in saved and path.parent != folder else path.name
        word = re.match(r"[a-z]*", name.lower())
        if word and word[0] in SPLIT_NAMES:
            tables[SPLIT_NAMES[word[0]]].append(path)
    if not any(tables.values()):
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in paths[:5])
            raise UserError(f"{folder}: the split of {names} is unknown; let each name start with train, val or test")
        tables["train"] = paths or [path for path in saved if path.parent == folder]
    for split, files in tables.items():
        if len({path.suffix for path in files}) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in files[:5])
            raise UserError(f"{folder}: the {split} split has several formats: {names}; keep one")
    return {split: files for split, files in tables.items() if files}


def _parse_entry(name: str, entry: dict[str, Any]) -> Source:
    allowed = {field.name for field in fields(Source)} - {"name"}
    for key in entry:
        if key not in allowed:
            raise UserError(f"sources.yaml: {name} has an unknown key '{key}'{suggest(key, allowed)}")
    for split in entry["files"]:
        if split not in SPLITS:
            raise UserError(f"sources.yaml: {name}.files has an unknown split '{split}'{suggest(split, SPLITS)}")
    for split in entry.get("counts", {}):
        if split not in (*SPLITS, "from"):
            raise UserError(f"sources.yaml: {name}.counts has an unknown split '{split}'{suggest(split, SPLITS)}")
    for subset in entry.get("exclude", []):
        if subset not in entry.get("subsets", {}):
            raise UserError(f"sources.yaml: {name}.exclude has an unknown sub-set '{subset}'{suggest(subset, entry.get('subsets', {}))}")
    licence = {"source" if key == "from" else key: _yes_or_no(value) for key, value in entry.get("licence", {}).items()}
    files = {split: [globs] if isinstance(globs, str) else globs for split, globs in entry["files"].items()}
    return Source(
        **{**entry, "name": name, "files": files, "licence": Licence(**licence), "gated": _yes_or_no(entry.get("gated", "unverified"))}
    )


def _yes_or_no(value: Any) -> str:
    """The value as text. YAML parses an unquoted yes or no as a boolean."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
