"""Scores of classification predictions: macro-F1, balanced accuracy and AUROC with intervals, paired differences, average ranks.

Legend: N images, S seeds, G groups (patients, slides or images), K classes, R bootstrap resamples.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_auroc, multiclass_f1_score

BLOCK = 500  # resamples per block; bounds the memory
AUROC_RESAMPLES = 1_000


@dataclass
class TransferResult:
    """Predictions and class probabilities of one encoder for the test split of one benchmark, per seed."""

    labels_N: np.ndarray
    groups_N: np.ndarray  # numbers 0..G-1, the same for every encoder on this benchmark
    predictions_SN: np.ndarray
    probabilities_SNK: np.ndarray


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


def resampling_weights(groups: int, *, resamples: int, seed: int, name: str) -> np.ndarray:
    """Number of times that each group is drawn in each resample, w_RG. It is the same for all encoders, so their differences are paired."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.float32)


def score_values(result: TransferResult) -> dict[str, float]:
    """Means over seeds of the torchmetrics macro-F1, balanced accuracy and AUROC (mean of one-vs-rest for more than two classes)."""
    classes = result.probabilities_SNK.shape[-1]
    labels = torch.from_numpy(result.labels_N)
    scores: dict[str, list[float]] = {"macro_f1": [], "balanced_accuracy": [], "auroc": []}
    for predicted_N, probabilities_NK in zip(result.predictions_SN, result.probabilities_SNK, strict=True):
        predicted, probabilities = torch.from_numpy(predicted_N), torch.from_numpy(probabilities_NK)
        scores["macro_f1"].append(multiclass_f1_score(predicted, labels, classes, average="macro").item())
        scores["balanced_accuracy"].append(multiclass_accuracy(predicted, labels, classes, average="macro").item())
        area = binary_auroc(probabilities[:, 1], labels) if classes == 2 else multiclass_auroc(probabilities, labels, classes)
        scores["auroc"].append(area.item())
    return {name: float(np.mean(values)) for name, values in scores.items()}


def resampled_scores(result: TransferResult, weights_RG: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """The three scores in each resample, which draws groups and training seeds with replacement."""
    seeds, classes = len(result.predictions_SN), result.probabilities_SNK.shape[-1]
    counts_SGKK = np.zeros((seeds, weights_RG.shape[1], classes, classes), np.float32)
    for s in range(seeds):
        np.add.at(counts_SGKK[s], (result.groups_N, result.labels_N, result.predictions_SN[s]), 1)
    seed_weights_RS = np.random.default_rng([seed, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights_RG)) / seeds
    blocks: dict[str, list[np.ndarray]] = {"macro_f1": [], "balanced_accuracy": []}
    for start in range(0, len(weights_RG), BLOCK):
        block_RG = weights_RG[start : start + BLOCK]
        sums_SRKK = np.stack(
            [(block_RG @ counts_GKK.reshape(len(counts_GKK), -1)).reshape(-1, classes, classes) for counts_GKK in counts_SGKK]
        )
        for name, score in (("macro_f1", macro_f1), ("balanced_accuracy", balanced_accuracy)):
            blocks[name].append((score(sums_SRKK).T * seed_weights_RS[start : start + BLOCK]).sum(1))
    image_weights_RN = weights_RG[:AUROC_RESAMPLES][:, result.groups_N]
    areas_RS = np.stack([auroc(result.labels_N, p_NK, image_weights_RN) for p_NK in result.probabilities_SNK], axis=1)
    return {name: np.concatenate(parts) for name, parts in blocks.items()} | {
        "auroc": (areas_RS * seed_weights_RS[: len(image_weights_RN)]).sum(1)
    }


def auroc(labels_N: np.ndarray, probabilities_NK: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of weighted images, one value per row of weights. Classes without an image in a row are ignored."""
    classes = probabilities_NK.shape[1]
    areas_RK = []
    for k in (1,) if classes == 2 else range(classes):
        order = np.argsort(probabilities_NK[:, k], kind="stable")
        score_N, positive_N = probabilities_NK[order, k], labels_N[order] == k
        starts = np.flatnonzero(np.r_[True, score_N[1:] != score_N[:-1]])  # equal scores count half
        w_RN = weights_RN[:, order]
        positives = np.add.reduceat(w_RN * positive_N, starts, axis=1)
        negatives = np.add.reduceat(w_RN * ~positive_N, starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives
        total = positives.sum(1) * negatives.sum(1)
        areas_RK.append(np.where(total > 0, (positives * (below + negatives / 2)).sum(1) / np.maximum(total, 1e-12), np.nan))
    defined = ~np.isnan(areas_RK)
    return np.where(defined.any(0), np.nansum(areas_RK, axis=0) / np.maximum(defined.sum(0), 1), np.nan)


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
