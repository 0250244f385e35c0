"""What each number means, in the words of the functions that compute it."""

import inspect
from typing import Any

from src.metrics import vqa
from src.reporting.blocks import Section, Table

CONDITIONS = [
    ["real", "the question with its own image"],
    ["shuffled", "the question with the image of another test question; the test images change places as one random cycle"],
    ["blank", "the question with an image of the encoder's mean colour"],
    ["none", "the question with no image at all"],
    ["majority", "no model: the most frequent training answer to the question's type"],
    ["colour", "no model of shapes: per question type a logistic regression from the image's colour histogram to the training answers"],
    ["95% interval", "bootstrap that draws images (not questions) with replacement; differences are paired: the same draws for both sides"],
    ["closed", "the dataset calls it closed, or, where it does not say, all references are yes or no; every other question is open"],
    ["blind", "another run, trained without any image and asked the same questions"],
    ["macro-F1", "mean over classes of the F1 of each class"],
]


def section() -> Section:
    scores = [[name, " ".join((inspect.getdoc(function) or "").split())] for name, function in vqa.SCORERS.items()]
    return Section("Definitions", [Table(["score", "definition"], scores), Table(["word", "meaning"], CONDITIONS)])


def scorer_table(scorers: dict[str, dict[str, Any]]) -> Table:
    """`scorers[benchmark][name]`, as the scores of one predictions file each."""
    benchmarks = list(scorers)
    names = list(dict.fromkeys(name for found in scorers.values() for name in found))
    rows = [[name, *(_rounded(scorers[benchmark].get(name)) for benchmark in benchmarks)] for name in names]
    caption = "One predictions file per column, the definitions below: in this field the scorer moves the number more than the model does."
    return Table(["scorer", *benchmarks], rows, caption=caption)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
