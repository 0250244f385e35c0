"""Linear probe and k-nearest neighbours on frozen features, tuned on the validation split.

Labels are class indices (N,), or 0/1 per label (N, K) of a multi-label set, in which every label is a binary task.

Legend: N images, F features, K classes or labels.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torchmetrics.functional.classification import multiclass_f1_score

from src.classification.multilabel import f1_thresholds, validation_f1
from src.classification.splits import to_indicator
from src.runtime.errors import UserError
from src.runtime.progress import Progress

GRID = tuple(10 ** (-5 + 2 * n / 3) for n in range(10))  # C of sklearn, the inverse penalty, from 1e-5 to 10
SINGLE_THREAD_SIZE = 20_000_000  # elements of a feature matrix up to which one thread is fastest
NEIGHBOURS = (1, 5, 10, 20, 50)
SHOTS = (1, 5, 10, 50)  # training images per class
CERTAIN = 20.0  # logit of a label that all training images, or none, have


@dataclass
class Split:
    """Features f_NF of each pooling, and the labels of one split."""

    features: dict[str, np.ndarray]
    labels: np.ndarray


@dataclass
class Fit:
    """The setting chosen on the validation split, and its class probabilities for the test split.

    In a multi-label set `thresholds_K` are the thresholds of the labels that are best on the validation split, otherwise None.
    """

    pooling: str
    setting: dict[str, float]
    validation: float  # macro-F1
    probabilities_NK: np.ndarray
    thresholds_K: np.ndarray | None = None


def linear_probe(train: Split, val: Split, test: Split, *, classes: int) -> Fit:
    """Logistic regression on standardised features, balanced class weights; pooling and C are chosen on `val`.

    In a multi-label set each label has its own regression, and all have the same pooling and C.
    """
    return _fit_best("logistic", logistic_candidates, train, val, test, classes)


def knn_probe(train: Split, val: Split, test: Split, *, classes: int) -> Fit:
    """Cosine k-NN with votes exp(similarity / 0.07) (Wu et al. 2018, arXiv 1805.01978); pooling and k are chosen on `val`."""
    return _fit_best("knn", knn_candidates, train, val, test, classes)


def few_shot_probe(train: Split, val: Split, test: Split, *, shots: int, seed: int, classes: int) -> Fit:
    """`linear_probe` on a random subset of at most `shots` training images per class, still tuned on the whole of `val`.

    In a multi-label set these are `shots` positive images per label and as many without any label. A label can have more, because images
    that were drawn for another label may have it too.
    """
    rng = np.random.default_rng([seed, shots])
    positive_NK = to_indicator(train.labels, classes)
    strata = [*positive_NK.T, ~positive_NK.any(1)]
    rows = np.unique(np.concatenate([rng.permutation(np.flatnonzero(stratum_N))[:shots] for stratum_N in strata]))
    subset = Split({pooling: f_NF[rows] for pooling, f_NF in train.features.items()}, train.labels[rows])
    return linear_probe(subset, val, test, classes=classes)


Predictor = Callable[[np.ndarray], np.ndarray]  # features f_NF -> probabilities p_NK
Candidates = Callable[[np.ndarray, np.ndarray, int], Iterator[tuple[dict[str, float], Predictor]]]


def _fit_best(name: str, candidates: Candidates, train: Split, val: Split, test: Split, classes: int) -> Fit:
    """The setting with the highest validation macro-F1; ties go to the lowest validation cross-entropy."""
    results = []
    # On small matrices the BLAS threads wait for each other, which is a hundred times slower on busy cores.
    with threadpool_limits(1 if max(f_NF.size for f_NF in train.features.values()) < SINGLE_THREAD_SIZE else None, user_api="blas"):
        for pooling, f_NF in train.features.items():
            fits = candidates(f_NF, train.labels, classes)
            for setting, predict in Progress(fits, desc=f"{name} on {pooling}", unit="fit", leave=False):
                p_NK = predict(val.features[pooling])
                results.append((validation_score(val.labels, p_NK), pooling, setting, predict))
        (f1, _), pooling, setting, predict = max(results, key=lambda result: result[0])
        thresholds_K = f1_thresholds(val.labels, predict(val.features[pooling])) if val.labels.ndim == 2 else None
        return Fit(pooling, setting, f1, predict(test.features[pooling]), thresholds_K)


def validation_score(labels: np.ndarray, p_NK: np.ndarray) -> tuple[float, float]:
    """(macro-F1, minus the cross-entropy). The macro-F1 of a multi-label set is that at its best thresholds."""
    if labels.ndim == 2:
        p_NK = np.clip(p_NK, 1e-7, 1 - 1e-7)
        return validation_f1(labels, p_NK), float(np.log(np.where(labels, p_NK, 1 - p_NK)).mean())
    return macro_f1(labels, p_NK), float(np.log(np.maximum(p_NK[np.arange(len(p_NK)), labels], 1e-7)).mean())


def logistic_candidates(f_NF: np.ndarray, labels: np.ndarray, classes: int) -> Iterator[tuple[dict[str, float], Predictor]]:
    """(setting, predictor) of a logistic regression for each C of `GRID`, each fit starting from the previous one."""
    mean_F, std_F = f_NF.mean(0), f_NF.std(0)
    scale_F = np.where(std_F > 1e-6, 1 / np.maximum(std_F, 1e-6), 0)  # a feature that is constant in training is ignored
    x_NF = (f_NF - mean_F) * scale_F
    multilabel = labels.ndim == 2
    varies_K = labels.min(0) < labels.max(0)  # the labels of a multi-label set for which there is something to fit
    if not varies_K.any() and multilabel:
        raise UserError("no label differs among the training images of this sample; use more images or leave out few_shot")
    targets = labels.T[varies_K] if multilabel else labels[None]
    models = [LogisticRegression(class_weight="balanced", max_iter=300, warm_start=True) for _ in targets]
    for strength in GRID:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties may not converge
            for model, y_N in zip(models, targets, strict=True):
                model.set_params(C=strength).fit(x_NF, y_N)
        coefficients, intercept = (np.concatenate([getattr(model, name) for model in models]) for name in ("coef_", "intercept_"))
        present = varies_K if multilabel else models[0].classes_

        def predict(g_NF: np.ndarray, w=coefficients, b=intercept, present=present) -> np.ndarray:
            z_NK = ((g_NF - mean_F) * scale_F) @ w.T + b
            if multilabel:
                p_NK = np.tile(expit(np.where(labels.all(0), CERTAIN, -CERTAIN)), (len(g_NF), 1))
                p_NK[:, present] = expit(z_NK)
                return p_NK
            z_NK = np.hstack([-z_NK / 2, z_NK / 2]) if z_NK.shape[1] == 1 else z_NK
            p_NK = np.zeros((len(g_NF), classes))
            p_NK[:, present] = softmax(z_NK)
            return p_NK

        yield {"C": strength}, predict


def knn_candidates(f_NF: np.ndarray, labels: np.ndarray, classes: int) -> Iterator[tuple[dict[str, float], Predictor]]:
    """(setting, predictor) of a k-NN classifier for each k of `NEIGHBOURS` that the training set allows."""
    x_NF, positive_NK = unit_norm(f_NF), to_indicator(labels, classes).astype(float)
    for k in NEIGHBOURS:
        if k > len(x_NF):
            return

        def predict(g_NF: np.ndarray, k=k) -> np.ndarray:
            blocks = []
            for start in range(0, len(g_NF), 1024):
                similarity = unit_norm(g_NF[start : start + 1024]) @ x_NF.T
                top = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
                votes = np.exp((np.take_along_axis(similarity, top, 1) - 1) / 0.07)
                blocks.append((votes[..., None] * positive_NK[top]).sum(1) / votes.sum(1, keepdims=True))
            return np.concatenate(blocks)

        yield {"k": k}, predict


def macro_f1(labels_N: np.ndarray, p_NK: np.ndarray) -> float:
    return multiclass_f1_score(torch.from_numpy(p_NK.argmax(1)), torch.from_numpy(labels_N), p_NK.shape[1], average="macro").item()


def softmax(z_NK: np.ndarray) -> np.ndarray:
    e_NK = np.exp(z_NK - z_NK.max(1, keepdims=True))
    return e_NK / e_NK.sum(1, keepdims=True)


def unit_norm(f_NF: np.ndarray) -> np.ndarray:
    return f_NF / np.maximum(np.linalg.norm(f_NF, axis=1, keepdims=True), 1e-12)
