"""A control that sees colours but no shapes: what it scores, a question gives away through the colour of its images.

Shapes: N items, B bins, H x W pixels.
"""

import warnings
from collections import Counter

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.scoring.vqa import majority, spoken, target

MOST_ANSWERS = 100  # the most frequent answers of a question type that the regression may give; the tail costs time and is never right


def histogram(image_3HW: np.ndarray) -> np.ndarray:
    """Shares (B,) of a uint8 RGB image's pixels: 4 x 4 x 4 joint colour bins, then 16 bins for each channel."""
    pixels_3P = image_3HW.reshape(3, -1)
    red, green, blue = (pixels_3P // 64).astype(np.int64)
    joint = np.bincount(red * 16 + green * 4 + blue, minlength=64)
    single = [np.bincount(channel, minlength=16) for channel in pixels_3P // 16]
    return np.concatenate([joint, *single]) / pixels_3P.shape[1]


def colour_answers(train_NB: np.ndarray, train: list[dict], test_NB: np.ndarray, test: list[dict]) -> list[str]:
    """For each test item the answer of a logistic regression (standardised, C = 1) from its histogram to the training answers.

    One regression per question type, over its `MOST_ANSWERS` most frequent answers; a type with a single answer, or none, gets what
    `majority` says. With options the places of the right ones are learnt.
    """
    answers = majority(train, test)
    kinds, asked = ([item.get("type") or "" for item in items] for items in (train, test))
    for kind in sorted(set(asked) & set(kinds)):
        rows = [n for n, of in enumerate(kinds) if of == kind]
        frequent = {answer for answer, _ in Counter(target(train[n]) for n in rows).most_common(MOST_ANSWERS)}
        rows = [n for n in rows if target(train[n]) in frequent]
        names = sorted(frequent, key=str)
        if len(names) < 2:
            continue
        places = [n for n, of in enumerate(asked) if of == kind]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a control need not be at its optimum
            model.fit(train_NB[rows], [names.index(target(train[n])) for n in rows])
        for n, found in zip(places, model.predict(test_NB[places]), strict=True):
            answers[n] = spoken(names[found], test[n])
    return answers
