"""Answers that need no model: the most frequent one, and what the colours of the image give away without any shape.

Shapes: N items, B bins, H x W pixels.
"""

import warnings
from collections import Counter, defaultdict

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

MOST_ANSWERS = 100  # the most frequent answers of a question type that the regression may give; the tail costs time and is never right


def majority_answers(train: list[dict], test: list[dict]) -> list[str]:
    """For each test item the most frequent training answer of its question type, and of all types where its own was never seen.

    Answers are counted in lower case; of equally frequent ones the first in the alphabet is taken. With options it is the option at
    the place that is right most often. Without training items the answer is empty.
    """
    counts: defaultdict[str, Counter] = defaultdict(Counter)
    for item in train:
        for kind in ("", f"type={item.get('type') or ''}"):
            counts[kind][classifier_target(item)] += 1
    best = {kind: min(found, key=lambda answer: (-found[answer], str(answer))) for kind, found in counts.items()}
    return [target_to_text(best.get(f"type={item.get('type') or ''}", best.get("", "")), item) for item in test]


def classifier_target(item: dict) -> str | int:
    """What a classifier learns for an item: its first reference in lower case, or the place of the right option."""
    answer = item["references"][0]
    choices = item.get("choices") or []
    return choices.index(answer) if answer in choices else answer.lower().strip()


def target_to_text(found: str | int, item: dict) -> str:
    """The answer to `item` that a `target` stands for."""
    choices = item.get("choices") or [""]
    return choices[min(found, len(choices) - 1)] if isinstance(found, int) else found


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
    `majority` says, and so does one where the regression is no better than that on held-out thirds of the training answers: it would
    only add noise. With options the places of the right ones are learnt.
    """
    answers = majority_answers(train, test)
    kinds, asked = ([item.get("type") or "" for item in items] for items in (train, test))
    for kind in sorted(set(asked) & set(kinds)):
        rows = [n for n, of in enumerate(kinds) if of == kind]
        frequent = {answer for answer, _ in Counter(classifier_target(train[n]) for n in rows).most_common(MOST_ANSWERS)}
        rows = [n for n in rows if classifier_target(train[n]) in frequent]
        names = sorted(frequent, key=str)
        if len(names) < 2:
            continue
        places = [n for n, of in enumerate(asked) if of == kind]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a control need not be at its optimum
            numbers = np.array([names.index(classifier_target(train[n])) for n in rows])
            if not _beats_majority(model, train_NB[rows], numbers):
                continue
            model.fit(train_NB[rows], numbers)
        for n, found in zip(places, model.predict(test_NB[places]), strict=True):
            answers[n] = target_to_text(names[found], test[n])
    return answers


def _beats_majority(model: Pipeline, x_NB: np.ndarray, y_N: np.ndarray) -> bool:
    """Whether held-out thirds are answered better than by the most frequent answer, by two standard errors."""
    if len(y_N) < 30:
        return True
    right = cross_val_predict(model, x_NB, y_N, cv=KFold(3, shuffle=True, random_state=0)) == y_N
    return bool(right.mean() - np.bincount(y_N).max() / len(y_N) > 2 * right.std() / len(y_N) ** 0.5)
