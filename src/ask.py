"""`python -m src.ask model=run:NAME image=FILE question="..."`: answers one question, a conversation, or a table of questions as JSONL."""

import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.ask import AskConfig
from src.data.credentialed import credentialed_notice
from src.data.image_io import read_image
from src.inference.query import EMPTY_ANSWER, Sampling, VQAQuery, find_model, trained_on, validate_question
from src.runtime.atomic_file import write_atomically
from src.runtime.cli import command
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError, suggest
from src.runtime.progress import Progress

if TYPE_CHECKING:
    from src.inference.vqa_model import VQAModel
    from src.model.generate import Answer

COLUMNS = ("id", "question", "image", "frame")
NO_IMAGE = "no image was given; the answer rests on the question alone"


@dataclass
class QuestionRow:
    """One row of a question table: a question and its image files."""

    id: str
    question: str
    images: list[Path]
    frame: int | None


def ask(config: AskConfig) -> dict:
    """Answers `config.question`; returns a record in the format of a predictions file."""
    return converse(config)[-1]


def converse(config: AskConfig) -> list[dict]:
    """Answers `config.question`, or each of `config.questions` with the turns before it. The turns of `config.history` come first; the
    new ones are added to this file."""
    rows = [
        QuestionRow("", validate_question(question), _image_paths(config.image), config.frame)
        for question in config.questions or [config.question or ""]
    ]
    history = read_history(Path(config.history)) if config.history else []
    images, sampling = _query(rows[0]).images, _sampling(config)
    model = _load(config)
    predictions = []
    for row in rows:
        answer = model.answers([VQAQuery(row.question, images, list(history))], sampling)[0]
        predictions.append(_prediction(row, answer))
        history.append((row.question, answer.text.strip() or EMPTY_ANSWER))
    if config.history:
        turns = [{"question": question, "answer": answer} for question, answer in history]
        write_atomically(Path(config.history), "".join(json.dumps(turn, ensure_ascii=False) + "\n" for turn in turns))
    return predictions


def read_history(file: Path) -> list[tuple[str, str]]:
    """The (question, answer) turns of a JSONL file; none if it does not exist. Raises `UserError` for a line that is no such turn."""
    if not file.parent.is_dir():
        raise UserError(f"history={file}: the folder {file.parent} does not exist; create it, or give another file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n") if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"history={file}: cannot be read ({error}); give a JSONL file") from None
    history = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            turn = json.loads(line)
            history.append((validate_question(turn["question"]), turn["answer"].strip() or EMPTY_ANSWER))
        except (ValueError, TypeError, LookupError, AttributeError, UserError):
            raise UserError(f'history={file}, line {number}: not a turn {{"question": "...", "answer": "..."}}; correct the line') from None
    return history


def ask_all(config: AskConfig) -> Path:
    """Answers every question of the table `config.batch`, in order. The output file is written after the last answer."""
    table = Path(config.batch or "")
    rows, sampling = read_table(table), _sampling(config)
    if config.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, found {config.batch_size}")
    out = Path(config.out) if config.out else table.with_suffix(".answers.jsonl")
    model = _load(config)
    predictions = []
    for start in Progress(range(0, len(rows), config.batch_size), desc="ask", unit="batch"):
        batch = rows[start : start + config.batch_size]
        answers = model.answers([_query(row, where=f"{table}, id {row.id}: ") for row in batch], sampling)
        predictions += [_prediction(row, answer) for row, answer in zip(batch, answers, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions))
    return out


def read_table(table: Path) -> list[QuestionRow]:
    """Reads CSV or JSONL with `question` and optionally `image`, `frame`, `id`; image paths are relative to the table's folder.

    Raises `UserError` for a file that cannot be read, an unknown column, or a row without a question.
    """
    if not table.is_file():
        raise UserError(f"batch={table} is no file; give a CSV or JSONL file")
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]  # splitlines also splits within questions
        else:
            entries = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as {'JSONL' if table.suffix == '.jsonl' else 'CSV'}: {error}") from None
    if not entries:
        raise UserError(f"{table} holds no question")
    for number, entry in enumerate(entries, start=1):
        unknown = [name for name in entry if name not in COLUMNS] if isinstance(entry, dict) else ["?"]
        if unknown:
            raise UserError(f"{table}, row {number}: unknown column '{unknown[0]}'{suggest(str(unknown[0]), COLUMNS)}")
        if not str(entry.get("question") or "").strip():
            raise UserError(f"{table}, row {number} has no question")
    return [_question_row(entry, number, table) for number, entry in enumerate(entries, start=1)]


def _question_row(entry: dict, number: int, table: Path) -> QuestionRow:
    images = entry.get("image") or []
    names = images.split("|") if isinstance(images, str) else images
    frame = entry.get("frame")
    try:
        frame_number = None if frame in (None, "") else int(frame)
    except (TypeError, ValueError):
        raise UserError(f"{table}, row {number}: frame={frame!r} is no number") from None
    paths = [table.parent / name.strip() for name in names]
    return QuestionRow(str(entry.get("id") or number), str(entry["question"]), paths, frame_number)


def _query(row: QuestionRow, where: str = "") -> VQAQuery:
    try:
        return VQAQuery(row.question, [read_image(path, frame=row.frame) for path in row.images])
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def _image_paths(image) -> list[Path]:
    return [Path(image)] if isinstance(image, str) else [Path(str(name)) for name in image]


def _load(config: AskConfig) -> "VQAModel":
    source = find_model(config.model, outputs=config.outputs, checkpoint=config.checkpoint, accelerator=config.accelerator)
    for note in filter(None, (trained_on(source), credentialed_notice(source.credentialed))):
        print(f"note: {note}", file=sys.stderr)
    from src.inference.vqa_model import vqa_model_from_source  # imports torch: all checks before this line run without the wait for it

    return vqa_model_from_source(source)


def _sampling(config: AskConfig) -> Sampling:
    return Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed)


def _prediction(row: QuestionRow, answer: "Answer") -> dict:
    prediction = {"id": row.id, "question": row.question, "image": [str(path) for path in row.images], **answer.line()}
    return prediction if row.images else prediction | {"note": NO_IMAGE}


@command("ask", AskConfig)
def main(config: AskConfig) -> None:
    if sum(map(bool, (config.question is not None, config.questions, config.batch))) != 1:
        raise UserError('give one of question="...", questions=[...] and batch=FILE')
    if config.batch and config.history:
        raise UserError("history= belongs to question= or questions=; the questions of batch= are independent")
    if config.batch:
        print(ask_all(config))
        return
    predictions = converse(config)
    for prediction in predictions:
        print(json.dumps(prediction, ensure_ascii=False) if config.json else prediction["prediction"])
    if "note" in predictions[0] and not config.json:
        print(f"note: {predictions[0]['note']}", file=sys.stderr)


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:], texts=("model", "question", "image", "history", "batch", "out"))
    main()
