"""Baseline answers to a benchmark that need no model, learned from the training split of its source.

majority  the most frequent training answer of the question type
colour    per question type, a logistic regression from the colour histogram of the image to the training answers

Shapes: N items, B bins, H x W pixels.
"""

import warnings
from collections import Counter, defaultdict

import numpy as np
import xxhash
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from src.data.image_transform import decode_image
from src.data.shards import Shards
from src.evaluation.benchmark import Benchmark, to_items

BASELINES = ("majority", "colour")
IMAGE_SIZE = 64  # pixels; enough for colours
MAX_TRAIN_RECORDS = 8_000  # for the colour regression, spread over the training split
MAX_ANSWERS = 100  # answers per question type that the regression can give; rarer ones cost time and are almost never predicted


def baseline_answers(test: Benchmark) -> dict[str, list[str]]:
    """Per baseline, its answer to each question of `test`. Empty without a training split; no `colour` without images."""
    rows = test.shards.rows("train")
    if len(rows) == 0:
        return {}
    train = to_items(test.shards, rows.tolist())
    answers = {"majority": majority_answers(train, test.items)}
    if test.shards.column("num_images")[test.rows].any():
        subset = np.linspace(0, len(rows) - 1, min(MAX_TRAIN_RECORDS, len(rows))).astype(int)
        train_NB = row_histograms(test.shards, rows[subset].tolist())
        answers["colour"] = colour_answers(train_NB, [train[n] for n in subset], row_histograms(test.shards, test.rows), test.items)
    return answers


def majority_answers(train: list[dict], test: list[dict]) -> list[str]:
    """For each test item, the most frequent training answer of its question type, or of all types if its type has no training item.

    Answers are counted in lower case; ties go to the first in alphabetical order. For items with options, the option at the position
    that is most often correct is chosen. Without training items the answer is empty.
    """
    counts: defaultdict[str, Counter] = defaultdict(Counter)
    for item in train:
        for key in ("", f"type={item.get('type') or ''}"):
            counts[key][to_target(item)] += 1
    best = {key: min(counter, key=lambda target: (-counter[target], str(target))) for key, counter in counts.items()}
    return [target_to_text(best.get(f"type={item.get('type') or ''}", best.get("", "")), item) for item in test]


def to_target(item: dict) -> str | int:
    """The classification target of an item: the position of the correct option, or the first reference in lower case."""
    answer = item["references"][0]
    choices = item.get("choices") or []
    return choices.index(answer) if answer in choices else answer.lower().strip()


def target_to_text(target: str | int, item: dict) -> str:
    """The answer to `item` that `target` denotes."""
    choices = item.get("choices") or [""]
    return choices[min(target, len(choices) - 1)] if isinstance(target, int) else target


def colour_histogram(image_3HW: np.ndarray) -> np.ndarray:
    """Colour histogram (B,) of a uint8 RGB image, as fractions of its pixels: 4 x 4 x 4 joint bins, then 16 bins per channel."""
    pixels_3P = image_3HW.reshape(3, -1)
    red, green, blue = (pixels_3P // 64).astype(np.int64)
    joint = np.bincount(red * 16 + green * 4 + blue, minlength=64)
    per_channel = [np.bincount(channel, minlength=16) for channel in pixels_3P // 16]
    return np.concatenate([joint, *per_channel]) / pixels_3P.shape[1]


def row_histograms(shards: Shards, rows: list[int]) -> np.ndarray:
    """Colour histograms (N, B) of the first image of each row, black for a row without image. Equal files are decoded once."""
    histograms: dict[bytes, np.ndarray] = {}
    digests = []
    for row in rows:
        images = shards[row].images
        digests.append(xxhash.xxh3_128_digest(images[0]) if images else b"")
        if digests[-1] not in histograms:
            pixels = decode_image(images[0], size=IMAGE_SIZE, exact=False) if images else np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
            histograms[digests[-1]] = colour_histogram(pixels)
    return np.stack([histograms[digest] for digest in digests])


def colour_answers(train_NB: np.ndarray, train: list[dict], test_NB: np.ndarray, test: list[dict]) -> list[str]:
    """For each test item, the answer of a logistic regression (standardised features, C = 1) from its colour histogram.

    There is one regression per question type, over its `MAX_ANSWERS` most frequent answers. A type gets the majority answer instead if
    it has fewer than two training answers, or if the regression is not better than the majority on held-out thirds of the training
    items: it would only add noise. For items with options, the position of the correct option is learned.
    """
    answers = majority_answers(train, test)
    train_types, test_types = ([item.get("type") or "" for item in items] for items in (train, test))
    for kind in sorted(set(test_types) & set(train_types)):
        train_rows = [n for n, other in enumerate(train_types) if other == kind]
        frequent = {target for target, _ in Counter(to_target(train[n]) for n in train_rows).most_common(MAX_ANSWERS)}
        train_rows = [n for n in train_rows if to_target(train[n]) in frequent]
        targets = sorted(frequent, key=str)
        if len(targets) < 2:
            continue
        test_rows = [n for n, other in enumerate(test_types) if other == kind]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline does not need the exact optimum
            labels_N = np.array([targets.index(to_target(train[n])) for n in train_rows])
            if not _beats_majority(model, train_NB[train_rows], labels_N):
                continue
            model.fit(train_NB[train_rows], labels_N)
        for n, label in zip(test_rows, model.predict(test_NB[test_rows]), strict=True):
            answers[n] = target_to_text(targets[label], test[n])
    return answers


def _beats_majority(model: Pipeline, x_NB: np.ndarray, labels_N: np.ndarray) -> bool:
    """Whether the accuracy on held-out thirds exceeds that of the most frequent answer by two standard errors."""
    if len(labels_N) < 30:
        return True
    correct = cross_val_predict(model, x_NB, labels_N, cv=KFold(3, shuffle=True, random_state=0)) == labels_N
    return bool(correct.mean() - np.bincount(labels_N).max() / len(labels_N) > 2 * correct.std() / len(labels_N) ** 0.5)
