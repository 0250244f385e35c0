"""Anybody's predictions, JSONL or CSV -> items to score. Every mistake in the file is one sentence, and nothing is scored."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from src.runtime.errors import UserError, suggest

NEEDED = ("id", "question", "references", "prediction")
OPTIONAL = ("source", "image", "type", "choices", "prediction_unnormalised")
SAID = ("closed", "seen", "cut")  # true or false
SUFFIXES = (".jsonl", ".csv")


def read_foreign_predictions(path: Path, *, benchmark: str | None, ids: Collection[str] | None = None) -> list[dict]:
    """Items with `id`, `question`, `references` (list), `prediction` and, where given, those of `OPTIONAL` and `SAID`.

    `references` may be one string, and be called `reference`; numbers become text. Alternatives within a string are separated by `#`
    when `benchmark` is vqa_med_2019 and in no other case. `ids`, if given, are the questions that must be answered, each once.
    Raises UserError, naming the file, the line and what is wrong there.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"predictions file {path} has the ending '{path.suffix}'{suggest(path.suffix, SUFFIXES)}")
    text = _text(path)
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text)
    items = [_item(row, f"{path}, line {number}", benchmark=benchmark) for number, row in rows]
    if not items:
        raise UserError(f"predictions file {path} is empty; it needs a line for each question with {', '.join(NEEDED)}")
    _check_ids([item["id"] for item in items], path, ids)
    return items


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"predictions file {path} does not exist")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as mistake:
        raise UserError(f"predictions file {path} is not UTF-8 (byte {mistake.start}); save it in that encoding") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as mistake:
            raise UserError(f"{path}, line {number}: not JSON ({mistake.msg}): {line[:60]!r}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: found {line[:60]!r}, needs an object {{...}} with {', '.join(NEEDED)}")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if twice:
            raise UserError(f"{path}, line 1: the column '{twice[0]}' stands there more than once; keep one of them")
        for row in reader:
            number = reader.line_num
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {number}: the header has {len(reader.fieldnames or ())} columns and this line another number"
                )
            lists = {name: _listed(value) for name, value in row.items() if name in ("references", "reference", "choices")}
            yield number, {name: value for name, value in {**row, **lists}.items() if value != "" or name not in OPTIONAL}
    except csv.Error as mistake:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({mistake})") from None


def _listed(value: str) -> str | list:
    """A list that was written into a cell as JSON."""
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            pass
    return value


def _item(row: dict, place: str, *, benchmark: str | None) -> dict:
    row = dict(row)
    if "reference" in row:
        if "references" in row:
            raise UserError(f"{place}: has both reference and references; keep one of them")
        row["references"] = row.pop("reference")
    for name in NEEDED:
        if name not in row:
            raise UserError(f"{place}: has no '{name}', found {', '.join(map(str, row)) or 'nothing'}")
    item: dict = {name: _string(row[name], name, place) for name in ("id", "question", "prediction")}
    if not item["id"].strip():
        raise UserError(f"{place}: id is empty; each question needs one of its own")
    given = row["references"] if isinstance(row["references"], list) else [row["references"]]
    references = [_string(reference, "references", place) for reference in given]
    if benchmark == "vqa_med_2019":
        references = [alternative.strip() for reference in references for alternative in reference.split("#")]
    item["references"] = [reference for reference in references if reference.strip()]
    if not item["references"]:
        raise UserError(f"{place}: references are empty; a question without an answer cannot be scored")
    if row.get("choices"):
        if not isinstance(row["choices"], list):
            raise UserError(f"{place}: choices is {json.dumps(row['choices'])[:60]}; allowed is a list of the options")
        item["choices"] = [_string(choice, "choices", place) for choice in row["choices"]]
    item |= {name: row[name] for name in SAID if isinstance(row.get(name), bool)}
    return item | {name: _string(row[name], name, place) for name in OPTIONAL if name != "choices" and row.get(name) is not None}


def _string(value: object, name: str, place: str) -> str:
    """Text, or a number as text. NaN is what a table library writes for a missing answer: never one itself."""
    if (isinstance(value, str) and value.strip().lower() == "nan") or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f'{place}: {name} is NaN or infinite, which is no answer; write the text, or "" for an empty prediction')
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: {name} is {json.dumps(value)[:60]}; allowed is text or a number")
    return str(value)


def check_references(items: list[dict], wanted: dict[str, list[str]], path: Path) -> None:
    """Raises UserError where a file brings other answers to a question than the benchmark has, by id; case and white space apart."""
    for item in items:
        given, right = ({" ".join(text.casefold().split()) for text in texts} for texts in (item["references"], wanted[item["id"]]))
        if given != right:
            raise UserError(
                f"{path}: question '{item['id']}' has the references {item['references']}, the benchmark has {wanted[item['id']]}; "
                "a predictions file cannot bring its own"
            )


def _check_ids(found: list[str], path: Path, wanted: Collection[str] | None) -> None:
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {len(twice)} ids occur more than once, the first is '{twice[0]}'; each question has one line")
    if wanted is None:
        return
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        parts = [
            f"{len(names)} {what} (first: '{names[0]}')" for names, what in ((missing, "ids are missing"), (extra, "are extra")) if names
        ]
        raise UserError(f"{path}: the ids are not those of the benchmark's {len(set(wanted))} questions: {' and '.join(parts)}")
