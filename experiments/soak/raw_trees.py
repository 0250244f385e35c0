"""Small intact folders of raw data, to be damaged: phantoms for every reader, and parts of real datasets."""

import csv
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.build.source import BuildConfig
from data_prep.export_chat import FORMS
from data_prep.phantom.scene.world import RADIOLOGY
from data_prep.phantom.writers import UNSEEN, WRITERS
from data_prep.phantom.writers.folder import render_jpeg, scenes
from data_prep.phantom.writers.pathvqa import sample_questions
from data_prep.shards import build_all
from data_prep.sources import find_source
from src.classification.reader import read_dataset
from src.data.record import SPLITS
from src.runtime.errors import UserError

ITEMS = (6, 12, 24, 48, 96, 192)  # per split, tried in turn, because a classification set needs an image of each class in each split
MNIST = ("retinamnist", "octmnist", "pneumoniamnist", "organcmnist")  # have the layout of breastmnist
OWN = ("own_jsonl", "own_json", "own_csv", "own_tsv", "own_parquet", "own_messages", "own_conversations", "own_folder")
REAL_ROWS = 24  # of a table


def write_phantom(out: Path) -> None:
    """Writes the phantom of the source `out.name`, or own data in the layout that the name states."""
    if out.name not in WRITERS:
        _write_own_data(out)
        return
    for items in ITEMS:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        WRITERS[out.name].write(out, seed=0, num=dict.fromkeys(WRITERS[out.name].SIZES, items))
        with suppress(UserError):
            if out.name in UNSEEN:
                read_dataset(out.name, raw=out.parent)
            return


def _write_own_data(out: Path) -> None:
    for split in SPLITS:
        rows = []
        for n, (scene, rng) in enumerate(scenes(0, out.name, split, ITEMS[0], tuple(RADIOLOGY))):
            path = out / (f"{split}/{n % 2}/{n}.jpg" if out.name == "own_folder" else f"images/{split}{n}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(render_jpeg(scene, rng))
            for number, (_, question, answer) in enumerate(sample_questions(scene, rng)):
                rows.append({"id": f"{split}{n}-{number}", "image": path.name, "question": question, "answer": answer})
        _write_own_table(out, split, rows)


def _write_own_table(out: Path, split: str, rows: list[dict]) -> None:
    layout = out.name.removeprefix("own_")
    if layout in ("messages", "conversations"):
        role, content, user, assistant = FORMS[layout]
        for row in rows:
            turns = [(user, f"<image>\n{row.pop('question')}"), (assistant, row.pop("answer"))]
            row[layout] = [{role: name, content: text} for name, text in turns]
    if layout == "json":
        (out / f"{split}.json").write_text(json.dumps(rows, indent=1))
    elif layout == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), out / f"{split}.parquet")
    elif layout in ("csv", "tsv"):
        with (out / f"{split}.{layout}").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if layout == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif layout != "folder":
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def copy_part(source: Path, out: Path) -> None:
    """Copies `REAL_ROWS` rows of each text table of a real dataset, and every other file that its reader opens.

    Call it in a process of its own, because an audit hook stays until the process ends.
    """
    entry = find_source(source.name, source.parent)
    shutil.copytree(source, out, copy_function=lambda old, new: Path(new).symlink_to(Path(old).resolve()))
    for table in {path for split in SPLITS for path in entry.tables(out, split)}:
        part = _part_of_table(table)
        if part is not None:
            table.unlink()
            table.write_bytes(part)
    opened: set[str] = set()
    sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
    build_all(BuildConfig(sources=[out.name], raw=out.parent, out=out.parent / ".shards", workers=1, quarantine_limit=1.0))
    shutil.rmtree(out.parent / ".shards")
    for path in sorted(out.rglob("*")):
        if path.is_symlink():
            original = path.resolve()
            path.unlink()
            if str(path) in opened:
                shutil.copyfile(original, path)


def _part_of_table(path: Path) -> bytes | None:
    """Rows at equal distances; None for a format that is copied whole."""
    if path.suffix == ".json":
        content = json.loads(path.read_bytes())
        step = max(1, len(content) // REAL_ROWS)
        return json.dumps(content[::step] if isinstance(content, list) else dict(list(content.items())[::step]), indent=1).encode()
    if path.suffix not in (".jsonl", ".txt", ".csv", ".tsv"):
        return None
    lines = path.read_bytes().splitlines(keepends=True)
    header, rows = (lines[:1], lines[1:]) if path.suffix in (".csv", ".tsv") else ([], lines)
    return b"".join([*header, *rows[:: max(1, len(rows) // REAL_ROWS)]])
