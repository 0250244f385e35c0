"""Test questions with their images, drawn by lot, so that nobody chose what is shown."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.shards import Shards
from src.metrics.vqa import exact
from src.reporting.blocks import Example, Examples, Section, Text
from src.reporting.run_data import RunData
from src.runtime.errors import UserError

SIDE = 320  # pixels of the longer side; a report of twelve stays below 1 MB
SEED = 0


def section(run: RunData, *, count: int) -> Section:
    total = len(_questions(run))
    if not total:
        return Section("Examples", [Text("No answers to questions on images are stored.", "gap")])
    try:
        shown = draw(run, count=count)
    except UserError as error:
        return Section("Examples", [Text(f"The test images cannot be shown: {error}", "gap")])
    caption = (
        f"{len(shown)} of {total:,} test questions, drawn by lot (seed {SEED}), at most one per image; nothing was picked by hand. "
        "A tick marks an exact match."
    )
    return Section("Examples", [Examples(shown, caption)])


def draw(run: RunData, *, count: int) -> list[Example]:
    """At most `count` test questions, at most one per image; raises `UserError` where the test shards are not at hand."""
    items = _questions(run)
    root = Path(run.verbs.get("evaluate", {}).get("data_root") or run.config.get("data", {}).get("root", ""))
    drawn, seen = [], set()
    for number in np.random.default_rng(SEED).permutation(len(items)):
        name, item = items[number]
        if (item["source"], item.get("image")) not in seen:
            seen.add((item["source"], item.get("image")))
            drawn.append((name, item))
        if len(drawn) == count:
            break
    conditions = {name: {c: _by_id(run, name, c) for c in ("real", "shuffled", "blank")} for name in run.seen}
    opened = {source: Shards(root / source) for source in {item["source"] for _, item in drawn}}
    return [_example(opened[item["source"]], name, item, conditions[name]) for name, item in drawn]


def _questions(run: RunData) -> list[tuple[str, dict]]:
    """(benchmark, question) of every test question, once where one benchmark is a part of another."""
    found: dict[tuple[str, str], tuple[str, dict]] = {}
    for name in run.seen:
        for item in run.predictions(name, "real"):
            found.setdefault((item["source"], item["id"]), (name, item))
    return list(found.values())


def _by_id(run: RunData, benchmark: str, condition: str) -> dict[str, dict]:
    return {item["id"]: item for item in run.predictions(benchmark, condition)}


def _example(shards: Shards, benchmark: str, item: dict, answers: dict[str, dict[str, dict]]) -> Example:
    said = [(condition, found[item["id"]]["prediction"]) for condition, found in answers.items() if item["id"] in found]
    return Example(
        image=_picture(shards, item["id"]),
        question=item["question"],
        references=item["references"],
        answers=[(condition, answer, exact(answer, item["references"]) == 1) for condition, answer in said],
        about=f"{benchmark}, {item['type']}, {item['id']}",
    )


def _picture(shards: Shards, key: str) -> str:
    """The first image of a record as a small JPEG in a data URI."""
    row = np.flatnonzero(shards.column("key") == key)
    if len(row) == 0:
        raise UserError(f"{shards.folder} holds no record '{key}'")
    image = Image.open(io.BytesIO(shards[int(row[0])].images[0])).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
