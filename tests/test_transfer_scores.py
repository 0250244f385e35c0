"""Scores and tables of transfer results."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from src.classification.scores import (
    TransferResult,
    auroc_and_precision,
    average_ranks,
    balanced_accuracy,
    confusion,
    difference,
    macro_f1,
    resampled_scores,
    resampling_weights,
    score_values,
)
from src.classification.table import transfer_table


def make_result(*, n=120, classes=3, seeds=1, groups=40, skill=0.5, seed=0):
    rng = np.random.default_rng(seed)
    labels_N = np.random.default_rng(7).integers(0, classes, n)
    p_SNK = rng.random((seeds, n, classes)) + skill * np.eye(classes)[labels_N]
    p_SNK = (p_SNK / p_SNK.sum(-1, keepdims=True)).round(2)  # with ties
    return TransferResult(labels_N, np.arange(n) % groups, p_SNK.argmax(-1), p_SNK)


def torch_scores(labels_N, p_NK):
    labels, p, classes = torch.from_numpy(labels_N), torch.from_numpy(p_NK), p_NK.shape[1]
    area = binary_auroc(p[:, 1], labels) if classes == 2 else multiclass_auroc(p, labels, classes)
    predicted = torch.from_numpy(p_NK.argmax(1))
    return {
        "macro_f1": multiclass_f1_score(predicted, labels, classes, average="macro").item(),
        "balanced_accuracy": multiclass_accuracy(predicted, labels, classes, average="macro").item(),
        "auroc": area.item(),
        "ece": multiclass_calibration_error(p, labels, classes, n_bins=15).item(),
    }


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_resampled_scores_equal_torchmetrics_on_the_repeated_images(classes):
    result = make_result(classes=classes, n=300)
    (w_RG,) = resampling_weights(40, resamples=5, seed=0, name="x")
    scores = resampled_scores(result, [w_RG[:2], w_RG[2:]], seed=0)
    for r in range(5):
        rows = np.repeat(np.arange(300), w_RG[r, result.groups_N].astype(int))
        for name, value in torch_scores(result.labels_N[rows], result.probabilities_SNK[0][rows]).items():
            assert scores[name][r] == pytest.approx(value, abs=1e-5), name


def test_scores_ignore_absent_classes():
    labels, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    sums = confusion(labels, predicted, classes=3)
    assert macro_f1(sums) == pytest.approx(multiclass_f1_score(torch.tensor(predicted), torch.tensor(labels), 3, average="macro").item())
    assert balanced_accuracy(sums) == pytest.approx(0.75)


def test_auroc_counts_ties_half():
    labels, p = np.array([0, 1, 0, 1]), np.array([0.5, 0.5, 0.2, 0.9])
    assert auroc_and_precision(labels[:, None], p[:, None], np.ones((4, 1)))[0] == pytest.approx((0.5 + 1 + 1 + 1) / 4)


def test_score_values_are_means_over_seeds():
    two_seeds = make_result(seeds=2)
    single = [torch_scores(two_seeds.labels_N, p)["macro_f1"] for p in two_seeds.probabilities_SNK]
    assert score_values(two_seeds)["macro_f1"] == pytest.approx(np.mean(single), abs=1e-6)


def test_intervals_are_wider_for_grouped_images():
    rng = np.random.default_rng(0)
    group_of = np.arange(400) // 20
    labels = rng.integers(0, 2, 400)
    correct = rng.random(20)[group_of] < 0.5  # all images of a group are correct, or all are wrong
    predicted = np.where(correct, labels, 1 - labels)
    p = np.eye(2)[predicted][None]
    single = resampled_scores(
        TransferResult(labels, np.arange(400), predicted[None], p), resampling_weights(400, resamples=500, seed=0, name="x"), seed=0
    )
    grouped = resampled_scores(
        TransferResult(labels, group_of, predicted[None], p), resampling_weights(20, resamples=500, seed=0, name="x"), seed=0
    )
    assert grouped["macro_f1"].std() > 2 * single["macro_f1"].std()


def test_average_ranks_share_ties_and_skip_incomplete_benchmarks():
    ranks = average_ranks({"a": {"x": 0.9, "y": 0.8, "z": 0.8}, "b": {"x": 0.5, "y": 0.7, "z": 0.6}, "c": {"x": 1.0}})
    assert ranks == {"x": 2.0, "y": 1.75, "z": 2.25}


def test_difference_p_is_small_for_a_clear_difference_and_one_for_none():
    assert difference(1.0, np.full(999, 1.0), n=1)["p"] == pytest.approx(2 / 1000)
    assert difference(0.0, np.zeros(999), n=1)["p"] == 1.0


def metadata(benchmark, encoder, protocol="probe"):
    return {
        "benchmark": benchmark,
        "encoder": encoder,
        "protocol": protocol,
        "classes": ["a", "b", "c"],
        "ours": encoder == "run:x",
        "depends_on": {},
    }


def test_transfer_table_has_its_keys_and_paired_differences():
    skills = {"run:x": 2.0, "scratch": 0.2}
    results = [(metadata(name, encoder), make_result(skill=skill, seed=3)) for name in ("s1", "s2") for encoder, skill in skills.items()]
    table = transfer_table(results, resamples=200, seed=0)
    assert table["metrics"]["transfer/s1/run:x/probe/macro_f1"].keys() == {"value", "low", "high", "n"}
    mean = table["metrics"]["transfer/mean/scratch/probe/macro_f1"]
    assert mean["value"] == pytest.approx(
        np.mean([table["metrics"][f"transfer/{s}/scratch/probe/macro_f1"]["value"] for s in ("s1", "s2")])
    )
    difference_of_means = table["metrics"]["transfer/mean/run:x_minus_scratch/probe/macro_f1"]
    assert difference_of_means["low"] > 0
    assert difference_of_means["p_holm"] == difference_of_means["p"]  # a family of one
    assert table["transfer"]["ranks"] == {"probe": {"run:x": 1.0, "scratch": 2.0}}
    confusion_KK = np.array(table["transfer"]["cells"][0]["confusion"])
    assert confusion_KK.sum() == 120
    assert len(table["transfer"]["differences"]) == 3
    identical = [(metadata("s1", encoder), make_result(seed=3)) for encoder in skills]
    differences = transfer_table(identical, resamples=200, seed=0)["transfer"]["differences"]
    assert [(row["value"], row["low"], row["high"]) for row in differences] == [(0, 0, 0)]


def test_few_shot_results_form_the_curve():
    table = transfer_table([(metadata("s1", "scratch", f"probe_{k}shot"), make_result(seeds=3)) for k in (1, 5)], resamples=50, seed=0)
    assert [(row["shots"], row["n"]) for row in table["transfer"]["few_shot"]] == [(1, 120), (5, 120)]
    assert table["transfer"]["cells"] == []
    assert "transfer/s1/scratch/probe_5shot/macro_f1" in table["metrics"]
