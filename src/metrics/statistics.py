"""Uncertainty of scores: cluster bootstrap, paired permutation test, Holm's correction, spread over training seeds.

Shapes: N items, C clusters, K scores, R resamples, S seeds. A cluster is one image with all its questions. A score is a ratio of sums:
the sum of its item scores over the number of items for which it is defined. All functions are deterministic for a given seed.
"""

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

BLOCK = 4_000_000  # random numbers per block; bounds the memory


def by_cluster(values_NK: np.ndarray, clusters: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts per cluster, both (C, K). NaN in `values_NK` means that the score is not defined for the item."""
    _, cluster_N = np.unique(np.asarray(clusters), return_inverse=True)
    defined_NK = ~np.isnan(values_NK)
    filled_NK = np.where(defined_NK, values_NK, 0.0)
    columns = range(values_NK.shape[1])
    sums = [np.bincount(cluster_N, weights=filled_NK[:, k]) for k in columns]
    counts = [np.bincount(cluster_N, weights=defined_NK[:, k]) for k in columns]
    return np.stack(sums, axis=1), np.stack(counts, axis=1)


def bootstrap(sums_CK: np.ndarray, counts_CK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Bootstrapped scores (R, K): clusters are drawn with replacement, then the ratio of sums (Efron & Tibshirani 1993, ch. 8).

    A score without any item in a resample is NaN there, and `interval` ignores it. All columns use the same draws, so differences of
    columns are paired.
    """
    assert sums_CK.shape == counts_CK.shape
    joined_CJ = np.concatenate([sums_CK, counts_CK], axis=1)
    totals_RJ = np.concatenate([weights @ joined_CJ for weights in _weights(len(sums_CK), resamples=resamples, seed=seed)])
    sums_RK, counts_RK = np.split(totals_RJ, 2, axis=1)
    return np.divide(sums_RK, counts_RK, out=np.full_like(sums_RK, np.nan), where=counts_RK > 0)


def over_seeds(sums_SCK: np.ndarray, counts_CK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Bootstrapped means over training seeds (R, K): seeds and clusters are both drawn with replacement.

    All seeds answer the same test items, so the two levels are crossed: one draw of clusters serves all seeds of a resample. With one
    seed the result equals that of `bootstrap`, without any spread over seeds.
    """
    seeds, clusters, columns = sums_SCK.shape
    flat_CJ = np.moveaxis(sums_SCK, 0, 1).reshape(clusters, seeds * columns)
    scores_RSK = bootstrap(flat_CJ, np.tile(counts_CK, (1, seeds)), resamples=resamples, seed=seed).reshape(resamples, seeds, columns)
    seed_weights_RS = np.concatenate(list(_weights(seeds, resamples=resamples, seed=seed + 1))) / seeds
    return np.einsum("rs,rsk->rk", seed_weights_RS, scores_RSK)


def interval(scores_RK: np.ndarray, *, clusters_K: np.ndarray, widest: tuple[float, float], level: float = 0.95) -> np.ndarray:
    """Percentile interval (2, K), or `widest` for fewer than two clusters.

    The interval has zero width if all clusters have the same score (all correct or all wrong); it must be read together with n.
    """
    tail = (1 - level) / 2
    quantile = np.nanquantile if np.isnan(scores_RK).any() else np.quantile
    bounds_2K = quantile(scores_RK, [tail, 1 - tail], axis=0)
    return np.where(clusters_K >= 2, bounds_2K, np.array(widest)[:, None])


def sign_flip(differences_CK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Two-sided p-values (K,) of a paired permutation test.

    `differences_CK` are sums of paired differences per cluster. Under H0 the two sides can be swapped, which flips the sign of a
    difference. Each resample flips the signs of whole clusters at random. The observed signs count as one resample (Phipson & Smyth
    2010), so p is at least 1 / (resamples + 1).
    """
    clusters, _ = differences_CK.shape
    observed_K = np.abs(differences_CK.sum(axis=0))
    generator = np.random.default_rng([seed, 1])
    extreme_K = np.zeros(differences_CK.shape[1])
    for rows in _blocks(clusters, resamples):
        signs = generator.integers(0, 2, size=(rows, clusters), dtype=np.int8) * np.float64(2) - 1
        extreme_K += (np.abs(signs @ differences_CK) >= observed_K - 1e-9).sum(axis=0)
    return (1 + extreme_K) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values (Holm 1979) of one family of tests, in the order of the input; reject if <= the level."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def detectable_difference(differences_R: np.ndarray, *, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `level` detects with probability `power`.

    Normal approximation from the bootstrapped differences: (z_{1-level/2} + z_power) standard errors.
    """
    return float((NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)) * np.nanstd(differences_R, ddof=1))


def _weights(clusters: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (rows, C) with the number of times that each cluster is drawn in each resample."""
    generator = np.random.default_rng([seed, 0])
    for rows in _blocks(clusters, resamples):
        indices = generator.integers(0, clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(indices.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(float)


def _blocks(width: int, resamples: int) -> Iterator[int]:
    """Numbers of resamples per block, so that a block has at most `BLOCK` random numbers."""
    step = max(1, BLOCK // width)
    for done in range(0, resamples, step):
        yield min(step, resamples - done)
