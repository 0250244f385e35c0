"""Rows of a table file, whatever the format: parquet, Arrow as `datasets` saves it, CSV, a JSON array, or JSON lines."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.readers.json_stream import iter_items
from data_prep.readers.raw_files import json_lines
from data_prep.readers.rows import InvalidRow
from data_prep.sources import Source
from src.runtime.errors import UserError, suggest

BATCH = 32  # rows at a time, since they may hold images
MAX_LINE = 16 << 20  # characters of one CSV field


def table_rows(path: Path, entry: Source, *, need: list[str], want: list[str] | None = None) -> Iterator[dict[str, Any] | InvalidRow]:
    """The columns `need` and, where they exist, `want` of every row.

    A column of `need` that the first row lacks, and a file that cannot be read to its end, are `UserError`s. A line of CSV with
    letters that are not UTF-8 comes with surrogates in their place, which the build refuses row by row.
    """
    rows = {".parquet": _parquet, ".arrow": _arrow, ".csv": _csv, ".json": _json, ".jsonl": _jsonl}[path.suffix](path, need, want or [])
    try:
        for number, row in enumerate(rows):
            if isinstance(row, InvalidRow) or not (missing := [column for column in need if column not in row]):
                yield row
            elif number == 0:
                raise UserError(f"{path.name} of {entry.name} has no column '{missing[0]}'{suggest(missing[0], row, these='it has')}")
            else:
                yield InvalidRow(f"{path.stem}-{number}", f"no column '{missing[0]}': row {number} of {path.name}")
    except (pa.ArrowException, OSError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path.name} of {entry.name} cannot be read as {path.suffix[1:]} ({reason}); fetch it again") from None


def _kept(there: list[str], need: list[str], want: list[str]) -> list[str]:
    """All columns where one is missing, so that the message can name the nearest."""
    return [name for name in there if name in need or name in want] if set(need) <= set(there) else there


def _parquet(path: Path, need: list[str], want: list[str]) -> Iterator[dict | InvalidRow]:
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(BATCH, columns=_kept(table.schema_arrow.names, need, want)):
            yield from _rows(batch, path)


def _arrow(path: Path, need: list[str], want: list[str]) -> Iterator[dict | InvalidRow]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            _check(batch)
            kept = batch.select(_kept(batch.schema.names, need, want))
            for start in range(0, len(kept), BATCH):
                yield from _rows(kept.slice(start, BATCH), path)


def _check(batch: pa.RecordBatch) -> None:
    """Damaged offsets, which would be followed out of the file and end the process. Letters that are not UTF-8 are a row's matter."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _rows(batch: pa.RecordBatch, path: Path) -> list[dict | InvalidRow]:
    """One text that is not UTF-8 harms its own row only."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [InvalidRow(path.stem, f"not UTF-8: a row of {path.name}, byte {error.start}")]
        return [row for n in range(len(batch)) for row in _rows(batch.slice(n, 1), path)]


def _csv(path: Path, need: list[str], want: list[str]) -> Iterator[dict | InvalidRow]:
    csv.field_size_limit(MAX_LINE)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, row in enumerate(table := csv.DictReader(file, strict=True)):  # a quote left open would swallow the rest of the file
            whole = None not in row and None not in row.values()
            reason = f"not as many fields as columns: line {table.line_num} of {path.name}"
            yield row if whole else InvalidRow(f"{path.stem}-{number}", reason)


def _json(path: Path, need: list[str], want: list[str]) -> Iterator[dict | InvalidRow]:
    for position, row in iter_items(path):
        yield row if isinstance(row, dict) else InvalidRow(f"{path.stem}-{position}", f"not a JSON object: item {position} of {path.name}")


def _jsonl(path: Path, need: list[str], want: list[str]) -> Iterator[dict | InvalidRow]:
    return (row for _, row in json_lines(path))
