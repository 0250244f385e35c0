"""Splits of classification sets that have none, or no val."""

import warnings
from itertools import permutations

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from src.classification.layouts import Example
from src.runtime.errors import UserError


def assign_splits(examples: list[Example], labels: np.ndarray) -> list[Example]:
    """Assigns examples without a split to one: five folds, stratified by class, with whole groups; one is test, one is val.

    An image of a multi-label set is in the stratum of its rarest label, or in that of the images without any label. Test and val are the
    first two folds without which train has all classes, and which have as many classes as possible.
    """
    unassigned_N = np.array([n for n, example in enumerate(examples) if not example.split])
    groups = [examples[n].group for n in unassigned_N]
    ungrouped = len(set(groups)) == len(groups)
    splitter = (StratifiedKFold if ungrouped else StratifiedGroupKFold)(5, shuffle=True, random_state=0)
    try:
        with warnings.catch_warnings():
            if labels.ndim == 2:
                warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # absent classes are reported by name
            folds = [fold for _, fold in splitter.split(unassigned_N, strata(labels[unassigned_N]), None if ungrouped else groups)]
    except ValueError as error:
        raise UserError(f"cannot split {len(unassigned_N)} images of {len(set(groups))} groups into fifths: {error}") from None
    occurs_5K = np.array([to_indicator(labels[unassigned_N[fold]], labels.max() + 1).any(0) for fold in folds])

    def classes_by_split(pair: tuple[int, int]) -> tuple[int, int]:
        return np.delete(occurs_5K, pair, axis=0).any(0).sum(), occurs_5K[list(pair)].sum()

    test, val = max(permutations(range(5), 2), key=classes_by_split)
    assigned = dict.fromkeys(unassigned_N[folds[test]].tolist(), "test") | dict.fromkeys(unassigned_N[folds[val]].tolist(), "val")
    return [example if example.split else example._replace(split=assigned.get(n, "train")) for n, example in enumerate(examples)]


def hold_out_val(examples: list[Example], labels: np.ndarray) -> list[Example]:
    """Assigns a fifth of the training examples of a set without val to val, as `assign_splits` does."""
    assigned = assign_splits([example._replace(split=example.split.removeprefix("train")) for example in examples], labels)
    return [new if new.split == "val" else given for given, new in zip(examples, assigned, strict=True)]


def strata(labels: np.ndarray) -> np.ndarray:
    """The class of each image (N,), or in a multi-label set its rarest label, and -1 for an image without any label."""
    if labels.ndim == 1:
        return labels
    frequency_NK = np.where(labels, labels.sum(0), len(labels) + 1)
    return np.where(labels.any(1), frequency_NK.argmin(1), -1)


def to_indicator(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels of either form as 0/1 per class (N, K)."""
    return labels if labels.ndim == 2 else np.eye(classes, dtype=np.uint8)[labels]
