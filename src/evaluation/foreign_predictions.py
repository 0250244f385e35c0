"""Reads predictions files of other systems (JSONL or CSV). An error in a file is a `UserError` of one line, and nothing is scored."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from src.runtime.errors import UserError, suggest

REQUIRED = ("id", "question", "references", "prediction")
OPTIONAL = ("source", "image", "type", "choices", "prediction_unnormalised")
FLAGS = ("closed", "seen", "cut", "judged")  # true or false
SUFFIXES = (".jsonl", ".csv")


def read_foreign_predictions(path: Path, *, benchmark: str | None, ids: Collection[str] | None = None) -> list[dict]:
    """Items with `id`, `question`, `references` (list), `prediction` and the fields of `OPTIONAL` and `FLAGS` that the file has.

    `references` may be a single string, or be named `reference`; numbers become text. Only for the benchmark vqa_med_2019, `#` separates
    alternatives within a string. `ids` are the questions that the file must answer, each once. Raises `UserError` with the file and line.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown file type '{path.suffix}'{suggest(path.suffix, SUFFIXES)}")
    text = _text(path)
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text)
    items = [_to_item(row, f"{path}, line {number}", benchmark=benchmark) for number, row in rows]
    if not items:
        raise UserError(f"{path}: the file is empty; write a line per question with {', '.join(REQUIRED)}")
    _check_ids([item["id"] for item in items], path, ids)
    return items


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: the file does not exist; give an existing predictions file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save the file in this encoding") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}); write one object per line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: found {_kind(row)}; write an object {{...}} with {', '.join(REQUIRED)}")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        repeated = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if repeated:
            raise UserError(f"{path}, line 1: the column '{repeated[0]}' occurs more than once; keep one of them")
        for row in reader:
            number = reader.line_num
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise UserError(
                    f"{path}, line {number}: the number of cells differs from the {columns} columns of the header; quote commas"
                )
            lists = {name: _parse_list(value) for name, value in row.items() if name in ("references", "reference", "choices")}
            yield number, {name: value for name, value in {**row, **lists}.items() if value != "" or name not in OPTIONAL}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}); check the quotes") from None


def _parse_list(value: str) -> str | list:
    """The value of a cell, parsed if it is a JSON list."""
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            pass
    return value


def _to_item(row: dict, place: str, *, benchmark: str | None) -> dict:
    key = "reference" if "reference" in row else "references"  # messages show the name of the file
    if "reference" in row and "references" in row:
        raise UserError(f"{place}: 'reference' and 'references' are both present; keep one of them")
    for name in (key if name == "references" else name for name in REQUIRED):
        if name not in row:
            raise UserError(f"{place}: '{name}' is missing, found {', '.join(map(str, row)) or 'nothing'}; add it")
    item: dict = {name: _string(row[name], name, place) for name in ("id", "question", "prediction")}
    if not item["id"].strip():
        raise UserError(f"{place}: id is empty; give each question a unique id")
    references = [_string(value, key, place) for value in (row[key] if isinstance(row[key], list) else [row[key]])]
    if benchmark == "vqa_med_2019":
        references = [alternative.strip() for reference in references for alternative in reference.split("#")]
    item["references"] = [reference for reference in references if reference.strip()]
    if not item["references"]:
        raise UserError(f"{place}: '{key}' is empty; give at least one answer to score against")
    if row.get("choices"):
        if not isinstance(row["choices"], list):
            raise UserError(f"{place}: choices is {_kind(row['choices'])}; give a list of the options")
        item["choices"] = [_string(choice, "choices", place) for choice in row["choices"]]
    item |= {name: row[name] for name in FLAGS if isinstance(row.get(name), bool)}
    return item | {name: _string(row[name], name, place) for name in OPTIONAL if name != "choices" and row.get(name) is not None}


def _string(value: object, name: str, place: str) -> str:
    """Text, or a number as text. NaN is rejected: table libraries write it for a missing answer."""
    if (isinstance(value, str) and value.strip().lower() == "nan") or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f'{place}: {name} is NaN or infinite; write the text, or "" for an empty prediction')
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: {name} is {_kind(value)}; give text or a number")
    return str(value)


def _kind(value: object) -> str:
    """A JSON value in words. Its text is left out, because a message may be shared and the data may not."""
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value)) or json.dumps(value)


def check_references(items: list[dict], expected: dict[str, list[str]], path: Path) -> None:
    """Raises `UserError` if the references of an item differ from `expected[id]`, those of the benchmark, ignoring case and white space."""
    for item in items:
        references, correct = item["references"], expected[item["id"]]
        if _folded(references) != _folded(correct):
            raise UserError(
                f"{path}: question '{item['id']}' has {len(references)} references that differ from the {len(correct)} of the benchmark; "
                "use those of the benchmark"
            )


def _folded(texts: list[str]) -> set[str]:
    return {" ".join(text.casefold().split()) for text in texts}


def _check_ids(ids: list[str], path: Path, expected: Collection[str] | None) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {len(repeated)} ids occur more than once (first: '{repeated[0]}'); write one line per question")
    if expected is None:
        return
    missing, extra = sorted(set(expected) - set(ids)), sorted(set(ids) - set(expected))
    if missing or extra:
        groups = ((missing, "ids are missing"), (extra, "are extra"))
        parts = [f"{len(names)} {problem} (first: '{names[0]}')" for names, problem in groups if names]
        raise UserError(f"{path}: the benchmark has {len(set(expected))} questions; {' and '.join(parts)}; answer each of them once")
