"""Rows of a table file: parquet, Arrow as saved by `datasets`, CSV and TSV (also compressed by gzip), a JSON array or JSON lines."""

import csv
import gzip
import zlib
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

BATCH = 32  # rows in memory at a time; they may contain images
MAX_FIELD = 16 << 20  # characters of one CSV field


def table_rows(
    path: Path, entry: Source, *, required: list[str], optional: list[str] | None = None, every_column: bool = False
) -> Iterator[dict[str, Any] | InvalidRow]:
    """Yields the `required` columns and, where they exist, the `optional` ones (or `every_column`) of every row.

    A row that cannot be decoded or lacks a column becomes an `InvalidRow`. In CSV files, bytes that are not UTF-8 become
    surrogates, which the build rejects row by row. Raises `UserError` if the first row lacks a required column or the file
    cannot be read to its end.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    read = {".parquet": _parquet, ".arrow": _arrow, ".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _jsonl}[kind]
    rows = read(path, required, None if every_column else optional or [])
    try:
        for number, row in enumerate(rows):
            if isinstance(row, InvalidRow) or not (missing := [column for column in required if column not in row]):
                yield row
            elif number == 0:
                # Without a header, the first row would be listed as the columns.
                columns = "; compare its header" if entry.credentialed else suggest(missing[0], row, these="columns")
                raise UserError(f"{path.name} of {entry.name}: no column '{missing[0]}'{columns}")
            else:
                yield InvalidRow(f"{path.stem}-{number}", f"no column '{missing[0]}': row {number} of {path.name}")
    except (pa.ArrowException, OSError, csv.Error, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        if entry.credentialed:  # other messages than that of the operating system may quote a record
            reason = (isinstance(error, OSError) and error.strerror) or "the message is withheld"
        raise UserError(f"{path.name} of {entry.name}: cannot be read as {kind[1:]} ({reason}); download it again") from None


def _select_columns(names: list[str], required: list[str], optional: list[str] | None) -> list[str]:
    """The columns to read: all without `optional`, or if a required one is missing, so that the error message can suggest the closest."""
    if optional is None or not set(required) <= set(names):
        return names
    return [name for name in names if name in required or name in optional]


def _parquet(path: Path, required: list[str], optional: list[str] | None) -> Iterator[dict | InvalidRow]:
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(BATCH, columns=_select_columns(table.schema_arrow.names, required, optional)):
            yield from _rows(batch, path)


def _arrow(path: Path, required: list[str], optional: list[str] | None) -> Iterator[dict | InvalidRow]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            _validate(batch)
            selected = batch.select(_select_columns(batch.schema.names, required, optional))
            for start in range(0, len(selected), BATCH):
                yield from _rows(selected.slice(start, BATCH), path)


def _validate(batch: pa.RecordBatch) -> None:
    """Raises `pa.ArrowInvalid` for damaged offsets, which would crash the process. Text that is not UTF-8 is left to `_rows`."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _rows(batch: pa.RecordBatch, path: Path) -> list[dict | InvalidRow]:
    """The rows of a batch; a row with text that is not UTF-8 becomes an `InvalidRow`."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [InvalidRow(path.stem, f"not UTF-8: a row of {path.name}, byte {error.start}")]
        return [row for n in range(len(batch)) for row in _rows(batch.slice(n, 1), path)]


def _csv(path: Path, required: list[str], optional: list[str] | None) -> Iterator[dict | InvalidRow]:
    csv.field_size_limit(MAX_FIELD)
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = max(",;\t", key=file.readline().count)  # of the header; a comma if there is none
        file.seek(0)
        # strict: an unclosed quote is an error
        for number, row in enumerate(table := csv.DictReader(file, delimiter=delimiter, strict=True)):
            is_complete = None not in row and None not in row.values()
            reason = f"wrong number of fields: line {table.line_num} of {path.name}"
            yield row if is_complete else InvalidRow(f"{path.stem}-{number}", reason)


def _json(path: Path, required: list[str], optional: list[str] | None) -> Iterator[dict | InvalidRow]:
    for position, row in iter_items(path):
        yield row if isinstance(row, dict) else InvalidRow(f"{path.stem}-{position}", f"not a JSON object: item {position} of {path.name}")


def _jsonl(path: Path, required: list[str], optional: list[str] | None) -> Iterator[dict | InvalidRow]:
    return (row for _, row in json_lines(path))
