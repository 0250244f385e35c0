"""Definitions of scores and terms. Scores are defined by the docstrings of the functions that compute them."""

import inspect
from typing import Any

from src.metrics.protocols import PROTOCOLS
from src.reporting.blocks import Section, Table

TERMS = [
    ["real", "the question with its own image"],
    ["shuffled", "the question with the image of another test question; the images are exchanged along one random cycle"],
    ["other_modality", "the question with the next image of that cycle that has another modality; only if the records name it"],
    ["blank", "the question with an image that has the encoder's mean colour everywhere"],
    ["none", "the question without an image"],
    ["unchanged", "share of answers that are the same with the question's own image, ignoring case and white space: they need no image"],
    ["majority", "no model: the most frequent training answer to the question's type"],
    ["colour", "no vision model: per question type, a logistic regression from the image's colour histogram to the training answers"],
    ["95% interval", "bootstrap over images (not questions); both sides of a difference use the same resamples"],
    ["closed", "the dataset marks the question as closed or, if it has no such mark, all references are yes or no; all others are open"],
    ["blind", "another run that was trained without images and answered the same questions"],
    ["macro-F1", "unweighted mean of the F1 of the classes; in a multi-label set macro-F1@val"],
    ["macro-F1@val", "mean F1 of the labels with a positive test image, each at the threshold with the best F1 on the validation split"],
    ["macro-F1@0.5", "the same with the threshold 0.5 for all labels"],
    ["mAP", "mean average precision over the same labels"],
]


def section() -> Section:
    scores = [[name, " ".join((inspect.getdoc(function) or "").split())] for name, (function, _) in PROTOCOLS.items()]
    return Section("Definitions", [Table(["score", "definition"], scores), Table(["term", "meaning"], TERMS)])


def scorer_table(scorers: dict[str, dict[str, Any]]) -> Table:
    """`scorers[benchmark][name]` is the score of one predictions file under one published scorer."""
    names = list(dict.fromkeys(name for scores in scorers.values() for name in scores))
    notes = {name: protocol.note for name, protocol in PROTOCOLS.items()}
    rows = [[name, *(_rounded(scores.get(name)) for scores in scorers.values()), notes.get(name)] for name in names]
    caption = "Each column is one predictions file. The choice of the scorer often changes the number more than the choice of the model."
    return Table(["scorer", *scorers, "why it differs"], rows, caption=caption)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
