"""Test predictions of many encoders -> macro-F1 with intervals, paired differences, Holm's correction, average rank.

Legend: N images, S seeds, G groups (patients, slides or images), K classes, R bootstrap resamples.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_auroc, multiclass_f1_score

BLOCK = 500  # resamples at a time: bounds memory
AUROC_RESAMPLES = 1_000


@dataclass
class TransferResult:
    """What one encoder said about the test split of one benchmark: a row of probabilities and predictions per seed."""

    labels_N: np.ndarray
    groups_N: np.ndarray  # numbers 0..G-1, the same for every encoder on this benchmark
    predictions_SN: np.ndarray
    probabilities_SNK: np.ndarray


def macro_f1(confusion_KK: np.ndarray) -> np.ndarray:
    """(..., K, K) confusions, rows are labels -> mean F1 of the classes that occur as label or prediction (torchmetrics' rule)."""
    hit = np.diagonal(confusion_KK, axis1=-2, axis2=-1)
    both = confusion_KK.sum(-1) + confusion_KK.sum(-2)
    return (2 * hit / np.maximum(both, 1e-12)).sum(-1) / np.maximum((both > 0).sum(-1), 1)


def balanced_accuracy(confusion_KK: np.ndarray) -> np.ndarray:
    """Mean recall, over the same classes as `macro_f1`."""
    hit, labels = np.diagonal(confusion_KK, axis1=-2, axis2=-1), confusion_KK.sum(-1)
    occurs = labels + confusion_KK.sum(-2) > 0
    return (hit / np.maximum(labels, 1e-12)).sum(-1) / np.maximum(occurs.sum(-1), 1)


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, *, classes: int) -> np.ndarray:
    return np.bincount(labels_N * classes + predictions_N, minlength=classes**2).reshape(classes, classes)


def resampling_weights(groups: int, *, resamples: int, seed: int, name: str) -> np.ndarray:
    """How often each group is drawn in each resample, w_RG. The same for every encoder: that makes differences paired."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.float32)


def score_values(cell: TransferResult) -> dict[str, float]:
    """Mean over seeds of torchmetrics' macro-F1, balanced accuracy and AUROC (one-vs-rest mean where there are more than two)."""
    classes = cell.probabilities_SNK.shape[-1]
    labels = torch.from_numpy(cell.labels_N)
    found: dict[str, list[float]] = {"macro_f1": [], "balanced_accuracy": [], "auroc": []}
    for predicted_N, probabilities_NK in zip(cell.predictions_SN, cell.probabilities_SNK, strict=True):
        predicted, scores = torch.from_numpy(predicted_N), torch.from_numpy(probabilities_NK)
        found["macro_f1"].append(multiclass_f1_score(predicted, labels, classes, average="macro").item())
        found["balanced_accuracy"].append(multiclass_accuracy(predicted, labels, classes, average="macro").item())
        area = binary_auroc(scores[:, 1], labels) if classes == 2 else multiclass_auroc(scores, labels, classes)
        found["auroc"].append(area.item())
    return {name: float(np.mean(of)) for name, of in found.items()}


def resampled_scores(cell: TransferResult, weights_RG: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """The three scores in every resample: groups are drawn again, and within each draw the seeds of training too."""
    seeds, classes = len(cell.predictions_SN), cell.probabilities_SNK.shape[-1]
    counts_SGKK = np.zeros((seeds, weights_RG.shape[1], classes, classes), np.float32)
    for s in range(seeds):
        np.add.at(counts_SGKK[s], (cell.groups_N, cell.labels_N, cell.predictions_SN[s]), 1)
    drawn_RS = np.random.default_rng([seed, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights_RG)) / seeds
    out: dict[str, list[np.ndarray]] = {"macro_f1": [], "balanced_accuracy": []}
    for at in range(0, len(weights_RG), BLOCK):
        block_RG = weights_RG[at : at + BLOCK]
        sums_SRKK = np.stack([(block_RG @ of.reshape(len(of), -1)).reshape(-1, classes, classes) for of in counts_SGKK])
        for name, score in (("macro_f1", macro_f1), ("balanced_accuracy", balanced_accuracy)):
            out[name].append((score(sums_SRKK).T * drawn_RS[at : at + BLOCK]).sum(1))
    few_RN = weights_RG[:AUROC_RESAMPLES][:, cell.groups_N]
    areas_RS = np.stack([auroc(cell.labels_N, of, few_RN) for of in cell.probabilities_SNK], axis=1)
    return {name: np.concatenate(parts) for name, parts in out.items()} | {"auroc": (areas_RS * drawn_RS[: len(few_RN)]).sum(1)}


def auroc(labels_N: np.ndarray, probabilities_NK: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of weighted images, one value per row of weights; classes absent from a row do not count."""
    classes = probabilities_NK.shape[1]
    areas_RK = []
    for k in (1,) if classes == 2 else range(classes):
        order = np.argsort(probabilities_NK[:, k], kind="stable")
        score_N, positive_N = probabilities_NK[order, k], labels_N[order] == k
        starts = np.flatnonzero(np.r_[True, score_N[1:] != score_N[:-1]])  # equal scores count half
        w_RN = weights_RN[:, order]
        up = np.add.reduceat(w_RN * positive_N, starts, axis=1)
        down = np.add.reduceat(w_RN * ~positive_N, starts, axis=1)
        below = np.cumsum(down, axis=1) - down
        total = up.sum(1) * down.sum(1)
        areas_RK.append(np.where(total > 0, (up * (below + down / 2)).sum(1) / np.maximum(total, 1e-12), np.nan))
    there = ~np.isnan(areas_RK)
    return np.where(there.any(0), np.nansum(areas_RK, axis=0) / np.maximum(there.sum(0), 1), np.nan)


def interval(value: float, drawn_R: np.ndarray, *, n: int) -> dict:
    """{value, low, high, n} with the 95% percentile interval."""
    low, high = np.nanpercentile(drawn_R, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def difference(value: float, drawn_R: np.ndarray, *, n: int) -> dict:
    """`interval` of a difference, with the two-sided bootstrap p of its sign."""
    tail = min((drawn_R <= 0).sum(), (drawn_R >= 0).sum())
    return interval(value, drawn_R, n=n) | {"p": float(min(1.0, 2 * (tail + 1) / (len(drawn_R) + 1)))}


def average_ranks(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """values[benchmark][encoder] -> mean rank of each encoder over the benchmarks that have all of them; 1 is best, ties share."""
    encoders = sorted({name for row in values.values() for name in row})
    rows = [[row[name] for name in encoders] for row in values.values() if len(row) == len(encoders)]
    if not rows:
        return {}
    ranks = [[1 + sum(b > a for b in row) + (sum(b == a for b in row) - 1) / 2 for a in row] for row in rows]
    return dict(zip(encoders, np.mean(ranks, axis=0).tolist(), strict=True))
