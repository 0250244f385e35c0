"""Builds shards, index and manifest from raw datasets.

python -m data_prep.shards sources=pathvqa,pubmedqa raw=data/raw out=data/shards
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from data_prep import sources
from data_prep.build import encode, slurm
from data_prep.build.finalize import COUNTS
from data_prep.build.process_pool import process_map
from data_prep.build.source import BuildConfig, build_source
from data_prep.build.token_counts import tokenizer_file
from data_prep.readers import OPTIONS, classification, own_data
from src.data.record import SPLITS
from src.runtime.arguments import parse_arguments
from src.runtime.atomic_file import explain_full_disk
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.tables import print_table

EXECUTORS = ("process", "slurm")
ROW_TOLERANCE = 0.05  # relative difference to the expected rows of a split before a message is printed


@report_user_errors
def main(args: list[str]) -> None:
    build_all(parse_arguments(BuildConfig, args))


def build_all(config: BuildConfig) -> dict[str, dict[str, Any]]:
    """Builds all sources; returns their manifests by name. Checks every source before it builds the first."""
    _validate(config)
    entries = [_with_options(sources.find_source(name, config.raw), config.options.get(name, {})) for name in config.sources]
    for entry in entries:
        if not (config.raw / entry.name).is_dir():
            raise UserError(f"source '{entry.name}': the raw folder {config.raw / entry.name} does not exist; create it, or correct raw=")
        if entry.reader in ("jsonl", "chat"):
            with explain_full_disk(entry.name, config.out / entry.name):
                own_data.check_tables(config.raw / entry.name, entry)
        for note in layout_notes(entry, config.raw / entry.name):
            print(f"{entry.name}: {note}")
    manifests = {}
    with tokenizer_file(config.tokenizer) as tokenizer, process_map(config.workers) as map_chunks:
        if config.executor == "slurm":
            slurm.write_shards(entries, config, tokenizer)
        for entry in entries:
            manifests[entry.name] = build_source(entry, config, map_chunks, tokenizer)
            _print_counts(entry, manifests[entry.name])
    return manifests


def _validate(config: BuildConfig) -> None:
    if not config.sources:
        raise UserError("sources=: names no source; give one or more")
    if config.executor not in EXECUTORS:
        raise UserError(f"executor={config.executor!r}: unknown executor{suggest(config.executor, EXECUTORS)}")
    for name in config.options:
        if name not in config.sources:
            raise UserError(f"options.{name}: not a source in sources={suggest(name, config.sources)}")
    for name, low, high in (
        ("workers", 1, 1024),
        ("jobs", 1, 1024),
        ("max_side", encode.MIN_SIDE, 65_500),
        ("quality", 1, 100),
        ("quarantine_limit", 0, 1),
    ):
        if not low <= getattr(config, name) <= high:
            raise UserError(f"{name}={getattr(config, name)}: out of range; allowed: {low} to {high}")
    if config.raw.resolve() == config.out.resolve():
        raise UserError(f"out={config.out}: same folder as raw=; give another one")


def _with_options(entry: sources.Source, options: dict[str, str]) -> sources.Source:
    """The entry with the options of the command line in place of its own. Raises `UserError` for an unknown option or value."""
    options = {**entry.options, **options}
    allowed = OPTIONS.get(entry.reader, {})
    for name, value in options.items():
        if name not in allowed:
            raise UserError(f"options.{entry.name}.{name}: unknown option{suggest(name, allowed)}")
        if allowed[name] and value not in allowed[name]:
            raise UserError(f"options.{entry.name}.{name}={value}: unknown value{suggest(value, allowed[name])}")
    return replace(entry, options=options)


def layout_notes(entry: sources.Source, raw: Path) -> list[str]:
    """How a folder of own data is read, and what in it is not read."""
    labels, notes = (raw / "labels.csv").exists(), []
    if entry.reader == "folder":
        classes = "labels.csv (images that it does not name are not read)" if labels else "one folder of images per class"
        notes.append(f"read as {classes}; the question is '{entry.options.get('question', classification.QUESTION)}'")
        if "question" not in entry.options:
            notes.append(f"for another question, add options.{entry.name}.question=\"...\" (to make: ARGS='...')")
    elif entry.reader in ("jsonl", "chat"):
        ignored = [*(["labels.csv"] if labels else []), *own_data.unread_folders(raw, entry)]
        if ignored:
            tables = ", ".join(path.name for split in SPLITS for path in entry.tables(raw, split))
            more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
            notes.append(f"read as a table ({tables}); ignored, unless a later row names a file in them: {', '.join(ignored[:5])}{more}")
            notes.append(f"to read them as classes, move them to a folder of their own, such as {raw}_classes, and give it in sources=")
    return notes


def _print_counts(entry: sources.Source, manifest: dict[str, Any]) -> None:
    table = Table("source", "split", *(Column(name, justify="right") for name in (*COUNTS, "expected")), box=None, pad_edge=False)
    for split, counts in manifest["counts"].items():
        if counts["in"] or split in entry.expected:
            expected = entry.expected.get(split)
            table.add_row(entry.name, split, *(f"{counts[name]:,}" for name in COUNTS), f"{expected:,}" if expected else "")
    print_table(table)
    for name in ("filtered", "notes"):
        if manifest.get(name):
            print(f"{entry.name} {name}: " + ", ".join(f"{count:,} {reason}" for reason, count in manifest[name].items()))
    for split, expected in entry.expected.items():
        rows = manifest["counts"][split]["in"]
        if abs(rows - expected) > ROW_TOLERANCE * expected and not manifest["phantom"]:
            print(f"{entry.name}: {split} has {rows:,} rows instead of {expected:,}; check that its raw files are complete")


if __name__ == "__main__":
    main(sys.argv[1:])
