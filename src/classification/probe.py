"""Frozen features -> class probabilities: logistic regression and nearest neighbours, tuned on the validation split.

Legend: N images, F features, K classes.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torchmetrics.functional.classification import multiclass_f1_score

from src.runtime.progress import Progress

GRID = tuple(10 ** (-5 + 2 * n / 3) for n in range(10))  # 1e-5 .. 10: sklearn's C, the inverse strength of the penalty
SMALL = 20_000_000  # numbers in a feature matrix up to which one thread is fastest
NEIGHBOURS = (1, 5, 10, 20, 50)
SHOTS = (1, 5, 10, 50)  # training images per class


@dataclass
class Split:
    """Features of every pooling, f_NF, and the labels of one split."""

    features: dict[str, np.ndarray]
    labels_N: np.ndarray


@dataclass
class Fit:
    """What was chosen on validation and what it says about the test split."""

    pooling: str
    setting: dict[str, float]
    validation: float  # macro-F1
    probabilities_NK: np.ndarray


def linear_probe(train: Split, val: Split, test: Split, *, classes: int) -> Fit:
    """Logistic regression on standardised features, classes weighted to equal totals; pooling and C chosen on `val`."""
    return _best(train, val, test, classes, logistic_candidates)


def knn_probe(train: Split, val: Split, test: Split, *, classes: int) -> Fit:
    """Cosine nearest neighbours, each voting with exp(similarity / 0.07) (Wu et al. 2018, arXiv 1805.01978); pooling and k chosen."""
    return _best(train, val, test, classes, knn_candidates)


def few_shot_probe(train: Split, val: Split, test: Split, *, shots: int, seed: int, classes: int) -> Fit:
    """`linear` on a draw of at most `shots` training images per class. The choice is still made on the whole of `val`."""
    rng = np.random.default_rng([seed, shots])
    drawn = [rng.permutation(np.flatnonzero(train.labels_N == k))[:shots] for k in range(classes)]
    rows = np.sort(np.concatenate(drawn))
    return linear_probe(Split({how: f_NF[rows] for how, f_NF in train.features.items()}, train.labels_N[rows]), val, test, classes=classes)


Scorer = Callable[[np.ndarray], np.ndarray]
Method = Callable[[np.ndarray, np.ndarray, int], Iterator[tuple[dict[str, float], Scorer]]]


def _best(train: Split, val: Split, test: Split, classes: int, method: Method) -> Fit:
    """The setting with the highest validation macro-F1; of equal ones that with the lowest validation cross-entropy."""
    tried = []
    # On small matrices the threads of BLAS wait for one another: on busy cores that costs a hundredfold.
    with threadpool_limits(1 if max(f_NF.size for f_NF in train.features.values()) < SMALL else None, user_api="blas"):
        for pooling, f_NF in train.features.items():
            fits = method(f_NF, train.labels_N, classes)
            for setting, score in Progress(fits, desc=f"{method.__name__} on {pooling}", unit="fit", leave=False):
                p_NK = score(val.features[pooling])
                loss = -np.log(np.maximum(p_NK[np.arange(len(p_NK)), val.labels_N], 1e-7)).mean()
                tried.append((macro_f1(val.labels_N, p_NK), -loss, pooling, setting, score))
        f1, _, pooling, setting, score = max(tried, key=lambda one: one[:2])
        return Fit(pooling, setting, f1, score(test.features[pooling]))


def logistic_candidates(f_NF: np.ndarray, labels_N: np.ndarray, classes: int) -> Iterator[tuple[dict[str, float], Scorer]]:
    mean_F, std_F = f_NF.mean(0), f_NF.std(0)
    scale_F = np.where(std_F > 1e-6, 1 / np.maximum(std_F, 1e-6), 0)  # a constant feature says nothing, whatever it is in other splits
    x_NF = (f_NF - mean_F) * scale_F
    model = LogisticRegression(class_weight="balanced", max_iter=300, warm_start=True)
    for strength in GRID:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties need not converge to be compared
            model.set_params(C=strength).fit(x_NF, labels_N)
        coefficients, intercept = model.coef_.copy(), model.intercept_.copy()

        def score(g_NF: np.ndarray, w=coefficients, b=intercept, seen=model.classes_) -> np.ndarray:
            z_NK = ((g_NF - mean_F) * scale_F) @ w.T + b
            z_NK = np.hstack([-z_NK / 2, z_NK / 2]) if z_NK.shape[1] == 1 else z_NK
            p_NK = np.zeros((len(g_NF), classes))
            p_NK[:, seen] = softmax(z_NK)
            return p_NK

        yield {"C": strength}, score


def knn_candidates(f_NF: np.ndarray, labels_N: np.ndarray, classes: int) -> Iterator[tuple[dict[str, float], Scorer]]:
    x_NF, one_hot_NK = unit_norm(f_NF), np.eye(classes)[labels_N]
    for k in NEIGHBOURS:
        if k > len(x_NF):
            return

        def score(g_NF: np.ndarray, k=k) -> np.ndarray:
            out = []
            for at in range(0, len(g_NF), 1024):
                similar = unit_norm(g_NF[at : at + 1024]) @ x_NF.T
                top = np.argpartition(-similar, k - 1, axis=1)[:, :k]
                votes = np.exp((np.take_along_axis(similar, top, 1) - 1) / 0.07)
                out.append((votes[..., None] * one_hot_NK[top]).sum(1))
            p_NK = np.concatenate(out)
            return p_NK / p_NK.sum(1, keepdims=True)

        yield {"k": k}, score


def macro_f1(labels_N: np.ndarray, p_NK: np.ndarray) -> float:
    return multiclass_f1_score(torch.from_numpy(p_NK.argmax(1)), torch.from_numpy(labels_N), p_NK.shape[1], average="macro").item()


def softmax(z_NK: np.ndarray) -> np.ndarray:
    e_NK = np.exp(z_NK - z_NK.max(1, keepdims=True))
    return e_NK / e_NK.sum(1, keepdims=True)


def unit_norm(f_NF: np.ndarray) -> np.ndarray:
    return f_NF / np.maximum(np.linalg.norm(f_NF, axis=1, keepdims=True), 1e-12)
