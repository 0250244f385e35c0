"""Random test questions with their images and answers.

A record of a credentialed source is replaced by its key. Answers of a model that was trained on such a source are withheld, because they
may repeat its texts.
"""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.credentialed import WITHHELD, is_credentialed, withheld_record
from src.data.shards import Shards
from src.metrics.vqa import exact
from src.reporting.blocks import Example, Examples, Section, Text
from src.reporting.run_data import RunData
from src.runtime.errors import UserError

SIDE = 320  # pixels of the longer side; a report with twelve examples stays below 1 MB
SEED = 0


def section(run: RunData, *, count: int) -> Section:
    total = len(_questions(run))
    if not total:
        return Section("Examples", [Text("No answers to questions on images are stored.", "gap")])
    try:
        examples = sample_examples(run, count=count)
    except UserError as error:
        return Section("Examples", [Text(f"The test images cannot be shown: {error}", "gap")])
    caption = (
        f"{len(examples)} of {total:,} test questions, sampled at random (seed {SEED}), at most one per image; none was selected by hand. "
        "A check mark means an exact match."
    )
    return Section("Examples", [Examples(examples, caption)])


def sample_examples(run: RunData, *, count: int) -> list[Example]:
    """At most `count` test questions, at most one per image. Raises `UserError` if the test shards are missing."""
    questions = _questions(run)
    root = Path(run.results.get("evaluate", {}).get("data_root") or run.config.get("data", {}).get("root", ""))
    sample, images = [], set()
    for index in np.random.default_rng(SEED).permutation(len(questions)):
        benchmark, item = questions[index]
        if (item["source"], item.get("image")) not in images:
            images.add((item["source"], item.get("image")))
            sample.append((benchmark, item))
        if len(sample) == count:
            break
    answers = {benchmark: {c: _by_id(run, benchmark, c) for c in ("real", "shuffled", "blank")} for benchmark in run.image_benchmarks}
    shards = {source: Shards(root / source) for source in {item["source"] for _, item in sample}}
    trained = bool(run.credentialed)
    return [_example(shards[item["source"]], benchmark, item, answers[benchmark], withhold=trained) for benchmark, item in sample]


def _questions(run: RunData) -> list[tuple[str, dict]]:
    """(benchmark, question) of every test question. A question of two benchmarks, one a part of the other, appears once."""
    questions: dict[tuple[str, str], tuple[str, dict]] = {}
    for benchmark in run.image_benchmarks:
        for item in run.predictions(benchmark, "real"):
            questions.setdefault((item["source"], item["id"]), (benchmark, item))
    return list(questions.values())


def _by_id(run: RunData, benchmark: str, condition: str) -> dict[str, dict]:
    return {item["id"]: item for item in run.predictions(benchmark, condition)}


def _example(shards: Shards, benchmark: str, item: dict, answers: dict[str, dict[str, dict]], *, withhold: bool) -> Example:
    """`withhold`: whether the answers of the model are withheld; for a record of a credentialed source, everything is."""
    hidden = is_credentialed(item["source"], shards.manifest)
    predictions = [(condition, items[item["id"]]["prediction"]) for condition, items in answers.items() if item["id"] in items]
    correct = {condition: exact(answer, item["references"]) == 1 for condition, answer in predictions}
    return Example(
        image="" if hidden else _thumbnail_uri(shards, item["id"]),
        question=withheld_record(item["id"]) if hidden else item["question"],
        references=[WITHHELD] if hidden else item["references"],
        answers=[(condition, WITHHELD if hidden or withhold else answer, correct[condition]) for condition, answer in predictions],
        about=f"{benchmark}, {item['type']}, {item['id']}",
    )


def _thumbnail_uri(shards: Shards, key: str) -> str:
    """The first image of a record as a small JPEG in a data URI."""
    index = np.flatnonzero(shards.column("key") == key)
    if len(index) == 0:
        raise UserError(f"{shards.folder}: no record has the key '{key}'; the shards were built again after the evaluation")
    image = Image.open(io.BytesIO(shards[int(index[0])].images[0])).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
