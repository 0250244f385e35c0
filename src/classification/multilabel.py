"""Thresholds and scores of multi-label predictions: each label is a binary task, and a score is the mean over labels.

The mean is over the labels with a positive image in the test (for AUROC also a negative one), in each resample over those of the resample.
A label that is never predicted has F1 and precision 0. `macro_f1` is `macro_f1@val`, so that a multi-label set has one score with the name
that the sets with one label per image use.

Legend: N images, S seeds, G groups, K labels, R bootstrap resamples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
    binary_precision,
    binary_recall,
)

from src.classification.scores import AUROC_RESAMPLES, auroc_and_precision, image_weights, mean_of_defined, resampled_means

HALF = 0.5
SCORES = ("macro_f1", "macro_f1@val", "macro_f1@0.5", "auroc", "map", "cf1@0.5")


@dataclass
class MultilabelResult:
    """Predictions (0/1) at the thresholds of the validation split, and probabilities, of one encoder for one test split, per seed."""

    labels_NK: np.ndarray
    groups_N: np.ndarray
    predictions_SNK: np.ndarray
    probabilities_SNK: np.ndarray

    def seed(self, s: int) -> "MultilabelResult":
        return replace(self, predictions_SNK=self.predictions_SNK[s : s + 1], probabilities_SNK=self.probabilities_SNK[s : s + 1])


def f1_thresholds(labels_NK: np.ndarray, p_NK: np.ndarray) -> np.ndarray:
    """Per label the threshold with the highest F1, half-way between two probabilities; 0.5 for a label without a positive image.

    Images with a probability of at least the threshold are positive. Of equal maxima the highest threshold is taken.
    """
    thresholds = []
    for labels_N, p_N in zip(labels_NK.T, p_NK.T, strict=True):
        order = np.argsort(-p_N, kind="stable")
        sorted_N = p_N[order].astype(float)
        f1_N = 2 * np.cumsum(labels_N[order]) / (np.arange(1, len(p_N) + 1) + labels_N.sum())
        f1_N[:-1][sorted_N[1:] == sorted_N[:-1]] = -1  # equal probabilities are on the same side of a threshold
        best = int(f1_N.argmax())
        lower = sorted_N[best + 1] if best + 1 < len(p_N) else 0.0
        thresholds.append((sorted_N[best] + lower) / 2 if labels_N.any() else HALF)
    return np.array(thresholds)


def validation_f1(labels_NK: np.ndarray, p_NK: np.ndarray) -> float:
    """Macro-F1 at the thresholds that are best on the same images."""
    counts_K3 = np.stack(_counts(labels_NK, p_NK >= f1_thresholds(labels_NK, p_NK)), axis=-1).sum(0)
    return float(_macro_f1(*counts_K3.T[:, None])[0])


def score_values(result: MultilabelResult) -> dict[str, float]:
    """Means over seeds of the scores by torchmetrics; `cf1@0.5` is the CF1 of mmpretrain, for comparison with its users."""
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    for s in range(len(result.predictions_SNK)):
        rows = [row for row in label_scores(result.seed(s)) if row["positives"]]
        scores["macro_f1@val"].append(float(np.mean([row["f1"] for row in rows])))
        scores["macro_f1@0.5"].append(float(np.mean([row["f1@0.5"] for row in rows])))
        scores["auroc"].append(float(np.mean([row["auroc"] for row in rows if row["auroc"] is not None] or np.nan)))
        scores["map"].append(float(np.mean([row["average_precision"] for row in rows])))
        precision, recall = (np.mean([row[name] for row in rows]) for name in ("precision@0.5", "recall@0.5"))
        scores["cf1@0.5"].append(float(2 * precision * recall / max(precision + recall, 1e-12)))
    scores["macro_f1"] = scores["macro_f1@val"]
    return {name: float(np.mean(values)) for name, values in scores.items()}


def label_scores(result: MultilabelResult) -> list[dict]:
    """The scores of each label, means over seeds. The ranking scores are None where they are not defined."""
    rows = []
    for k, labels in enumerate(torch.from_numpy(result.labels_NK.astype(int)).T):
        positives, per_seed = int(labels.sum()), []
        for predicted_NK, p_NK in zip(result.predictions_SNK, result.probabilities_SNK, strict=True):
            predicted, p = torch.from_numpy(predicted_NK[:, k].astype(int)), torch.from_numpy(p_NK[:, k])
            at_half = (p >= HALF).int()
            scores = {"precision": binary_precision(predicted, labels), "recall": binary_recall(predicted, labels)}
            scores |= {"f1": binary_f1_score(predicted, labels), "f1@0.5": binary_f1_score(at_half, labels)}
            scores |= {"precision@0.5": binary_precision(at_half, labels), "recall@0.5": binary_recall(at_half, labels)}
            scores |= {"average_precision": binary_average_precision(p, labels)} if positives else {}
            scores |= {"auroc": binary_auroc(p, labels)} if 0 < positives < len(labels) else {}
            per_seed.append({name: value.item() for name, value in scores.items()})
        means = {name: float(np.mean([scores[name] for scores in per_seed])) for name in per_seed[0]}
        rows.append({"auroc": None, "average_precision": None} | means | {"positives": positives})
    return rows


def resampled_scores(result: MultilabelResult, weights: Iterable[np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    """The scores in each resample, which draws groups and training seeds with replacement. `weights` are blocks w_RG."""
    seeds, groups, labels = len(result.predictions_SNK), result.groups_N.max() + 1, result.labels_NK.shape[1]
    counts_SG5K = np.zeros((seeds, groups, 5, labels), np.float32)
    for counts_G5K, predicted_NK, p_NK in zip(counts_SG5K, result.predictions_SNK, result.probabilities_SNK, strict=True):
        at_val, at_half = _counts(result.labels_NK, predicted_NK), _counts(result.labels_NK, p_NK >= HALF)
        np.add.at(counts_G5K, result.groups_N, np.stack([*at_val, *at_half[:2]], axis=1))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in SCORES if name != "macro_f1"}
    for block_RG in weights:
        sums_SR5K = np.stack([(block_RG @ counts_G5K.reshape(groups, -1)).reshape(-1, 5, labels) for counts_G5K in counts_SG5K])
        true, predicted, positive, true_half, predicted_half = np.moveaxis(sums_SR5K, 2, 0)
        scores["macro_f1@val"].append(_macro_f1(true, predicted, positive).T)
        scores["macro_f1@0.5"].append(_macro_f1(true_half, predicted_half, positive).T)
        scores["cf1@0.5"].append(_cf1(true_half, predicted_half, positive).T)
        for w_NR in image_weights(block_RG[: AUROC_RESAMPLES - sum(map(len, scores["auroc"]))], result.groups_N):
            ranked = [auroc_and_precision(result.labels_NK, p_NK, w_NR) for p_NK in result.probabilities_SNK]
            for name, values in zip(("auroc", "map"), zip(*ranked, strict=True), strict=True):
                scores[name].append(np.stack([mean_of_defined(values_RK) for values_RK in values], axis=1))
    means = resampled_means({name: np.concatenate(parts) for name, parts in scores.items()}, seed=seed)
    return means | {"macro_f1": means["macro_f1@val"]}


def _counts(labels_NK: np.ndarray, predicted_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per image and label: true positive, predicted positive, positive."""
    return (labels_NK * predicted_NK).astype(np.float32), predicted_NK.astype(np.float32), labels_NK.astype(np.float32)


def _mean_over_labels(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Mean over the labels (last axis) with positives, NaN if there is none."""
    occurs = positive > 0
    return np.where(occurs.any(-1), np.where(occurs, values, 0).sum(-1) / np.maximum(occurs.sum(-1), 1), np.nan)


def _macro_f1(true: np.ndarray, predicted: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return _mean_over_labels(2 * true / np.maximum(predicted + positive, 1e-12), positive)


def _cf1(true: np.ndarray, predicted: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Harmonic mean of the mean precision and the mean recall (mmpretrain's `average_performance`)."""
    precision, recall = (_mean_over_labels(true / np.maximum(total, 1e-12), positive) for total in (predicted, positive))
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)
