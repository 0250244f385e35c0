"""`python -m src.ask model=run:NAME image=FILE question="..."`: one answer, or a table of questions in and JSONL out."""

import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.ask import AskConfig
from src.data.image_io import read_image
from src.inference.query import Sampling, VQAQuery, find_model, validate_question
from src.runtime.cli import command
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError, suggest
from src.runtime.progress import Progress
from src.runtime.run_folder import write_atomically

if TYPE_CHECKING:
    from src.inference.vqa_model import VQAModel
    from src.model.generate import Answer

COLUMNS = ("id", "question", "image", "frame")
NO_IMAGE = "no image was given; the answer rests on the question alone"


@dataclass
class QuestionRow:
    """One question of a table, with the files it is about."""

    id: str
    question: str
    images: list[Path]
    frame: int | None


def ask(config: AskConfig) -> list[dict]:
    """The answer as one line of a predictions file."""
    row = QuestionRow("", validate_question(config.question or ""), _files(config.image), config.frame)
    query, sampling = _query(row), _sampling(config)
    answerer = _load(config)
    return [_line(row, answerer.answers([query], sampling)[0])]


def ask_all(config: AskConfig) -> Path:
    """Every question of the table, in its order; writes the file when all are answered."""
    table = Path(config.batch or "")
    rows, sampling = read_table(table), _sampling(config)
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, found {config.batch_size}")
    out = Path(config.out) if config.out else table.with_suffix(".answers.jsonl")
    answerer = _load(config)
    lines = []
    for at in Progress(range(0, len(rows), config.batch_size), desc="ask", unit="batch"):
        some = rows[at : at + config.batch_size]
        answers = answerer.answers([_query(row, where=f"{table}, id {row.id}: ") for row in some], sampling)
        lines += [_line(row, answer) for row, answer in zip(some, answers, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return out


def read_table(table: Path) -> list[QuestionRow]:
    """CSV or JSONL with `question` and optionally `image`, `frame`, `id`; image paths are relative to the table's folder."""
    if not table.is_file():
        raise UserError(f"batch={table} is no file")
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".jsonl":
            found = [json.loads(line) for line in text.split("\n") if line.strip()]  # splitlines would also split inside of questions
        else:
            found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as {'JSONL' if table.suffix == '.jsonl' else 'CSV'}: {error}") from None
    if not found:
        raise UserError(f"{table} holds no question")
    for number, entry in enumerate(found, start=1):
        unknown = [name for name in entry if name not in COLUMNS] if isinstance(entry, dict) else ["?"]
        if unknown:
            raise UserError(f"{table}, row {number}: unknown column '{unknown[0]}'{suggest(str(unknown[0]), COLUMNS)}")
        if not str(entry.get("question") or "").strip():
            raise UserError(f"{table}, row {number} has no question")
    return [_row(entry, number, table) for number, entry in enumerate(found, start=1)]


def _row(entry: dict, number: int, table: Path) -> QuestionRow:
    images = entry.get("image") or []
    names = images.split("|") if isinstance(images, str) else images
    frame = entry.get("frame")
    try:
        chosen = None if frame in (None, "") else int(frame)
    except (TypeError, ValueError):
        raise UserError(f"{table}, row {number}: frame={frame!r} is no number") from None
    return QuestionRow(str(entry.get("id") or number), str(entry["question"]), [table.parent / name.strip() for name in names], chosen)


def _query(row: QuestionRow, where: str = "") -> VQAQuery:
    try:
        return VQAQuery(row.question, [read_image(path, frame=row.frame) for path in row.images])
    except UserError as mistake:
        raise UserError(f"{where}{mistake}") from None


def _files(image) -> list[Path]:
    return [Path(image)] if isinstance(image, str) else [Path(str(name)) for name in image]


def _load(config: AskConfig) -> "VQAModel":
    found = find_model(config.model, outputs=config.outputs, checkpoint=config.checkpoint, accelerator=config.accelerator)
    from src.inference.vqa_model import vqa_model_from_source  # imports torch: every mistake so far was told without it

    return vqa_model_from_source(found)


def _sampling(config: AskConfig) -> Sampling:
    return Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed)


def _line(row: QuestionRow, answer: "Answer") -> dict:
    line = {"id": row.id, "question": row.question, "image": [str(path) for path in row.images], **answer.line()}
    return line if row.images else line | {"note": NO_IMAGE}


@command("ask", AskConfig)
def main(config: AskConfig) -> None:
    if (config.question is None) == (config.batch is None):
        raise UserError('give either question="..." or batch=FILE')
    if config.batch:
        print(ask_all(config))
        return
    for line in ask(config):
        print(json.dumps(line, ensure_ascii=False) if config.json else line["prediction"])
        if "note" in line and not config.json:
            print(f"note: {line['note']}", file=sys.stderr)


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:], texts=("model", "question", "image", "batch", "out"))
    main()
