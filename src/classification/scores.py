"""Scores of classification predictions: macro-F1, balanced accuracy, AUROC, calibration; intervals, paired differences, average ranks.

Legend: N images, S seeds, G groups (patients, slides or images), K classes, R bootstrap resamples.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

SCORES = ("macro_f1", "balanced_accuracy", "auroc", "ece")
BINS = 15  # of the expected calibration error (Guo et al., arXiv 1706.04599); of equal width
BLOCK = 500  # resamples per block; bounds the memory
RANKED_BLOCK = 50  # the same for scores of rankings, which need the weight of every image
AUROC_RESAMPLES = 1_000  # also of the average precision


@dataclass
class TransferResult:
    """Predictions and class probabilities of one encoder for the test split of one benchmark, per seed."""

    labels_N: np.ndarray
    groups_N: np.ndarray  # numbers 0..G-1, the same for every encoder on this benchmark
    predictions_SN: np.ndarray
    probabilities_SNK: np.ndarray

    def seed(self, s: int) -> "TransferResult":
        return replace(self, predictions_SN=self.predictions_SN[s : s + 1], probabilities_SNK=self.probabilities_SNK[s : s + 1])


def macro_f1(confusion_KK: np.ndarray) -> np.ndarray:
    """Mean F1 of confusion matrices (..., K, K) with labels as rows, over the classes that occur as label or prediction."""
    correct = np.diagonal(confusion_KK, axis1=-2, axis2=-1)
    total = confusion_KK.sum(-1) + confusion_KK.sum(-2)  # labels plus predictions per class
    return (2 * correct / np.maximum(total, 1e-12)).sum(-1) / np.maximum((total > 0).sum(-1), 1)


def balanced_accuracy(confusion_KK: np.ndarray) -> np.ndarray:
    """Mean recall over the same classes as in `macro_f1`."""
    correct, labels = np.diagonal(confusion_KK, axis1=-2, axis2=-1), confusion_KK.sum(-1)
    occurs = labels + confusion_KK.sum(-2) > 0
    return (correct / np.maximum(labels, 1e-12)).sum(-1) / np.maximum(occurs.sum(-1), 1)


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, *, classes: int) -> np.ndarray:
    return np.bincount(labels_N * classes + predictions_N, minlength=classes**2).reshape(classes, classes)


def resampling_weights(groups: int, *, resamples: int, seed: int, name: str) -> Iterator[np.ndarray]:
    """Number of times that each group is drawn in each resample, in blocks w_RG of at most `BLOCK` resamples.

    It is the same for all encoders, so their differences are paired.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for start in range(0, resamples, BLOCK):
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=min(BLOCK, resamples - start)).astype(np.float32)


def resampled_means(scores_RS: dict[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    """Each score (R, S) as its mean over training seeds that are drawn with replacement in each resample (R,)."""
    resamples, seeds = max(values.shape for values in scores_RS.values())
    weights_RS = np.random.default_rng([seed, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    return {name: (values * weights_RS[: len(values)]).sum(1) for name, values in scores_RS.items()}


def score_values(result: TransferResult) -> dict[str, float]:
    """Means over seeds of the torchmetrics macro-F1, balanced accuracy, AUROC (mean of one-vs-rest for more than two classes) and ECE."""
    classes = result.probabilities_SNK.shape[-1]
    labels = torch.from_numpy(result.labels_N)
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    for predicted_N, probabilities_NK in zip(result.predictions_SN, result.probabilities_SNK, strict=True):
        predicted, probabilities = torch.from_numpy(predicted_N), torch.from_numpy(probabilities_NK)
        scores["macro_f1"].append(multiclass_f1_score(predicted, labels, classes, average="macro").item())
        scores["balanced_accuracy"].append(multiclass_accuracy(predicted, labels, classes, average="macro").item())
        area = binary_auroc(probabilities[:, 1], labels) if classes == 2 else multiclass_auroc(probabilities, labels, classes)
        scores["auroc"].append(area.item())
        scores["ece"].append(multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS).item())
    return {name: float(np.mean(values)) for name, values in scores.items()}


def resampled_scores(result: TransferResult, weights: Iterable[np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    """The four scores in each resample, which draws groups and training seeds with replacement. `weights` are blocks w_RG."""
    seeds, classes = len(result.predictions_SN), result.probabilities_SNK.shape[-1]
    counts_SGKK = np.zeros((seeds, result.groups_N.max() + 1, classes, classes), np.float32)
    for s in range(seeds):
        np.add.at(counts_SGKK[s], (result.groups_N, result.labels_N, result.predictions_SN[s]), 1)
    ranked = slice(1, 2) if classes == 2 else slice(None)  # for two classes the area of the second
    positive_NK = np.eye(classes, dtype=bool)[result.labels_N][:, ranked]
    scores: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for block_RG in weights:
        sums_SRKK = np.stack(
            [(block_RG @ counts_GKK.reshape(len(counts_GKK), -1)).reshape(-1, classes, classes) for counts_GKK in counts_SGKK]
        )
        scores["macro_f1"].append(macro_f1(sums_SRKK).T)
        scores["balanced_accuracy"].append(balanced_accuracy(sums_SRKK).T)
        for w_NR in image_weights(block_RG[: AUROC_RESAMPLES - sum(map(len, scores["auroc"]))], result.groups_N):
            areas = [auroc_and_precision(positive_NK, p_NK[:, ranked], w_NR)[0] for p_NK in result.probabilities_SNK]
            scores["auroc"].append(np.stack([mean_of_defined(areas_RK) for areas_RK in areas], axis=1))
            errors = [calibration_error(p_NK, result.labels_N, w_NR) for p_NK in result.probabilities_SNK]
            scores["ece"].append(np.stack(errors, axis=1))
    return resampled_means({name: np.concatenate(parts) for name, parts in scores.items()}, seed=seed)


def image_weights(weights_RG: np.ndarray, groups_N: np.ndarray) -> Iterator[np.ndarray]:
    """Weights of images w_NR for blocks of resamples that fit into the cache of a core."""
    for start in range(0, len(weights_RG), RANKED_BLOCK):
        yield np.ascontiguousarray(weights_RG[start : start + RANKED_BLOCK].T)[groups_N]


def auroc_and_precision(positive_NK: np.ndarray, scores_NK: np.ndarray, weights_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of weighted images, both (R, K), per class.

    They are NaN where a class has no positive image in a resample, and the area also where it has no negative one. Both depend only on
    the weights above and inside each group of equal scores that holds a positive image, so the weights are summed between these.
    """
    areas_KR, precisions_KR = [], []
    total_R = weights_NR.sum(0, dtype=np.float64)
    for positive_N, score_N in zip(positive_NK.astype(bool).T, scores_NK.T, strict=True):
        order = np.argsort(-score_N, kind="stable")
        sorted_N = score_N[order]
        starts = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])  # equal scores count half
        ends = np.r_[starts[1:], len(order)]
        tied_N = np.repeat(np.arange(len(starts)), ends - starts)[positive_N[order].nonzero()[0]]
        group_P, first_P = np.unique(tied_N, return_index=True)  # groups with positives, and their first positives
        if not len(group_P):
            areas_KR.append(np.full(len(total_R), np.nan))
            precisions_KR.append(areas_KR[-1])
            continue
        true_PR = np.add.reduceat(weights_NR[order[positive_N[order]]], first_P, axis=0, dtype=np.float64)
        bounds = np.unique(np.r_[0, starts[group_P], ends[group_P]])
        between_BR = np.add.reduceat(weights_NR[order], bounds[bounds < len(order)], axis=0)
        above_BR = np.r_[np.zeros((1, len(total_R))), np.cumsum(between_BR, axis=0, dtype=np.float64)]  # sums before each bound
        predicted_PR = above_BR[np.searchsorted(bounds, ends[group_P])]
        positives_R, sums_PR = true_PR.sum(0), np.cumsum(true_PR, axis=0)
        negatives_PR = predicted_PR - sums_PR
        before_PR = above_BR[np.searchsorted(bounds, starts[group_P])] - (sums_PR - true_PR)  # negatives with higher scores
        negatives_R = total_R - positives_R
        with np.errstate(invalid="ignore", divide="ignore"):
            areas_KR.append((true_PR * (negatives_R - (before_PR + negatives_PR) / 2)).sum(0) / (positives_R * negatives_R))
            precision_PR = np.where(predicted_PR > 0, sums_PR / np.maximum(predicted_PR, 1e-12), 0)
            precisions_KR.append((true_PR * precision_PR).sum(0) / positives_R)
    return np.stack(areas_KR, axis=1), np.stack(precisions_KR, axis=1)


def calibration_error(probabilities_NK: np.ndarray, labels_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Expected calibration error (R,) of weighted images: over bins of confidence, the weighted mean of |accuracy - confidence|."""
    confidence_N = probabilities_NK.max(1)
    bins_N = np.searchsorted(torch.linspace(0, 1, BINS + 1)[1:-1].numpy(), confidence_N.astype(np.float32), side="right")
    gaps_N = (probabilities_NK.argmax(1) == labels_N) - confidence_N
    gaps_BR = (np.eye(BINS)[bins_N] * gaps_N[:, None]).T @ weights_NR
    return np.abs(gaps_BR).sum(0) / weights_NR.sum(0)


def mean_of_defined(values_RK: np.ndarray) -> np.ndarray:
    """Mean over the classes for which a score is defined, NaN if there is none."""
    defined_RK = ~np.isnan(values_RK)
    return np.where(defined_RK.any(1), np.where(defined_RK, values_RK, 0).sum(1) / np.maximum(defined_RK.sum(1), 1), np.nan)


def interval(value: float, resampled_R: np.ndarray, *, n: int) -> dict:
    """{value, low, high, n} with the 95% percentile interval."""
    low, high = np.nanpercentile(resampled_R, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def difference(value: float, resampled_R: np.ndarray, *, n: int) -> dict:
    """`interval` of a difference, with the two-sided bootstrap p-value of its sign."""
    tail = min((resampled_R <= 0).sum(), (resampled_R >= 0).sum())
    return interval(value, resampled_R, n=n) | {"p": float(min(1.0, 2 * (tail + 1) / (len(resampled_R) + 1)))}


def average_ranks(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean rank of each encoder over the benchmarks with all encoders, from values[benchmark][encoder]; 1 is best, ties share a rank."""
    encoders = sorted({name for row in values.values() for name in row})
    rows = [[row[name] for name in encoders] for row in values.values() if len(row) == len(encoders)]
    if not rows:
        return {}
    ranks = [[1 + sum(b > a for b in row) + (sum(b == a for b in row) - 1) / 2 for a in row] for row in rows]
    return dict(zip(encoders, np.mean(ranks, axis=0).tolist(), strict=True))
