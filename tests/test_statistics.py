"""Bootstrap intervals, permutation tests and Holm's correction, compared with closed forms and values computed by hand."""

import itertools

import numpy as np
import pytest

from src.metrics.statistics import bootstrap, by_cluster, detectable_difference, holm, interval, over_seeds, sign_flip


def test_by_cluster_ignores_undefined_scores():
    values = np.array([[1.0, np.nan], [0.0, 0.5], [1.0, np.nan]])
    sums, counts = by_cluster(values, ["b", "a", "b"])
    assert sums.tolist() == [[0.0, 0.5], [2.0, 0.0]]
    assert counts.tolist() == [[1, 1], [2, 0]]


def test_bootstrap_spread_equals_the_standard_error():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 1))
    scores = bootstrap(values, np.ones_like(values), resamples=4000, seed=0)
    assert scores.mean() == pytest.approx(values.mean(), abs=0.005)
    assert scores.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_bootstrap_of_unequal_clusters_is_a_ratio_of_sums():
    sums, counts = np.array([[3.0], [0.0]]), np.array([[3.0], [1.0]])
    scores = bootstrap(sums, counts, resamples=500, seed=0)
    assert set(np.unique(scores)) == {0.0, 0.75, 1.0}
    assert (scores == 0.75).mean() == pytest.approx(0.5, abs=0.07)


def test_bootstrap_columns_use_the_same_draws():
    values = np.random.default_rng(0).random((50, 1))
    scores = bootstrap(np.hstack([values, values + 1]), np.ones((50, 2)), resamples=100, seed=0)
    assert np.allclose(scores[:, 1] - scores[:, 0], 1)


def test_bootstrap_does_not_depend_on_the_block_size(monkeypatch):
    values, ones = np.random.default_rng(0).random((30, 2)), np.ones((30, 2))
    whole = bootstrap(values, ones, resamples=101, seed=4)
    monkeypatch.setattr("src.metrics.statistics.BLOCK", 90)
    assert np.allclose(whole, bootstrap(values, ones, resamples=101, seed=4))


def test_interval_ignores_resamples_without_an_item():
    sums, counts = np.array([[1.0], [0.0], [0.0]]), np.array([[1.0], [1.0], [0.0]])
    scores = bootstrap(sums, counts, resamples=1000, seed=0)
    assert np.isnan(scores).mean() == pytest.approx(1 / 27, abs=0.02)
    bounds = interval(scores, clusters_K=(counts > 0).sum(axis=0), widest=(0, 1))
    assert bounds[:, 0].tolist() == [0, 1]


@pytest.mark.slow
def test_cluster_intervals_cover_the_true_mean():
    """Correlated answers with a known mean: 95% of the cluster intervals contain it, and fewer of those that ignore clusters."""
    rng = np.random.default_rng(0)
    clustered = unclustered = 0
    for trial in range(200):
        correct = rng.random((60, 1)) < 0.6  # all answers on an image are correct, or all are wrong
        values = np.repeat(correct, 6, axis=0).astype(float)
        for names in (np.arange(360) // 6, np.arange(360)):
            sums, counts = by_cluster(values, names)
            low, high = interval(bootstrap(sums, counts, resamples=300, seed=trial), clusters_K=np.array([len(sums)]), widest=(0, 1))
            covered = int(low[0] <= 0.6 <= high[0])
            clustered, unclustered = (clustered + covered, unclustered) if len(sums) == 60 else (clustered, unclustered + covered)
    assert 0.90 <= clustered / 200 <= 0.99
    assert unclustered / 200 < 0.75


def test_one_cluster_gives_the_widest_interval():
    scores = bootstrap(np.array([[2.0]]), np.array([[3.0]]), resamples=10, seed=0)
    assert interval(scores, clusters_K=np.array([1]), widest=(0, 1)).ravel().tolist() == [0, 1]


def test_sign_flip_approximates_the_exact_permutation_test():
    differences = np.array([[1.0], [2.0], [0.5], [-0.25], [3.0], [1.5]])
    observed = abs(differences.sum())
    exact = np.mean([abs(np.dot(signs, differences[:, 0])) >= observed for signs in itertools.product((-1, 1), repeat=6)])
    assert sign_flip(differences, resamples=40_000, seed=0)[0] == pytest.approx(exact, abs=0.005)


def test_sign_flip_p_is_one_without_difference_and_never_zero():
    assert sign_flip(np.zeros((5, 1)), resamples=99, seed=0).tolist() == [1.0]
    assert sign_flip(np.ones((60, 1)), resamples=99, seed=0).tolist() == [0.01]


def test_p_values_are_uniform_without_a_difference():
    differences = np.random.default_rng(0).normal(size=(40, 300))
    p = sign_flip(differences, resamples=999, seed=0)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert p.mean() == pytest.approx(0.5, abs=0.06)


def test_holm_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]) == []


def test_over_seeds_adds_the_spread_between_seeds():
    rng = np.random.default_rng(0)
    base, ones = rng.random((80, 1)), np.ones((80, 1))
    one_seed = bootstrap(base, ones, resamples=3000, seed=0)
    assert np.allclose(over_seeds(base[None], ones, resamples=3000, seed=0), one_seed)
    equal = over_seeds(np.stack([base] * 4), ones, resamples=3000, seed=0)
    assert equal.std() == pytest.approx(one_seed.std(), rel=0.01)
    different = over_seeds(np.stack([base + shift for shift in (-0.3, -0.1, 0.1, 0.3)]), ones, resamples=3000, seed=0)
    between = np.std([-0.3, -0.1, 0.1, 0.3]) / 2
    assert different.std() == pytest.approx(np.hypot(one_seed.std(), between), rel=0.05)


def test_detectable_difference_follows_the_normal_approximation():
    differences = np.random.default_rng(0).normal(scale=0.01, size=100_000)
    assert detectable_difference(differences) == pytest.approx(2.8016 * 0.01, rel=0.01)
    assert detectable_difference(differences, power=0.5) == pytest.approx(1.96 * 0.01, rel=0.01)
