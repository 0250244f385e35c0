"""Uncertainty of scores: resampling of whole clusters (images), paired differences, families of tests, seeds.

Shapes: N items, C clusters, K scores, R resamples, S seeds. A score is a ratio of sums: the sum of its item scores over the
number of items that it is defined for. Everything is a function of its arguments and a seed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import norm

BLOCK = 4_000_000  # numbers drawn at once; bounds the memory


def by_cluster(values_NK: np.ndarray, clusters: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts per cluster, both (C, K); NaN in `values_NK` means that the score is not defined for the item."""
    _, cluster_N = np.unique(np.asarray(clusters), return_inverse=True)
    defined_NK = ~np.isnan(values_NK)
    filled_NK = np.where(defined_NK, values_NK, 0.0)
    columns = range(values_NK.shape[1])
    sums = [np.bincount(cluster_N, weights=filled_NK[:, k]) for k in columns]
    counts = [np.bincount(cluster_N, weights=defined_NK[:, k]) for k in columns]
    return np.stack(sums, axis=1), np.stack(counts, axis=1)


def bootstrap(sums_CK: np.ndarray, counts_CK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Resampled scores (R, K): clusters drawn with replacement, then the ratio of sums (Efron & Tibshirani 1993, ch. 8).

    A resample in which a score has no item at all is NaN and takes no part in `interval`. All columns see the same draws, so
    differences of columns are paired.
    """
    assert sums_CK.shape == counts_CK.shape
    both_CJ = np.concatenate([sums_CK, counts_CK], axis=1)
    totals_RJ = np.concatenate([weights @ both_CJ for weights in _weights(len(sums_CK), resamples=resamples, seed=seed)])
    sums_RK, counts_RK = np.split(totals_RJ, 2, axis=1)
    return np.divide(sums_RK, counts_RK, out=np.full_like(sums_RK, np.nan), where=counts_RK > 0)


def over_seeds(sums_SCK: np.ndarray, counts_CK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Resampled means over training seeds (R, K): seeds and clusters are both drawn with replacement.

    Every seed answered the same test items, so the two levels are crossed: one draw of clusters serves all seeds of a resample.
    With one seed this is `bootstrap`: nothing is known about the spread over seeds then.
    """
    seeds, clusters, columns = sums_SCK.shape
    wide_CJ = np.moveaxis(sums_SCK, 0, 1).reshape(clusters, seeds * columns)
    scores_RSK = bootstrap(wide_CJ, np.tile(counts_CK, (1, seeds)), resamples=resamples, seed=seed).reshape(resamples, seeds, columns)
    drawn_RS = np.concatenate(list(_weights(seeds, resamples=resamples, seed=seed + 1))) / seeds
    return np.einsum("rs,rsk->rk", drawn_RS, scores_RSK)


def interval(scores_RK: np.ndarray, *, clusters_K: np.ndarray, widest: tuple[float, float], level: float = 0.95) -> np.ndarray:
    """Percentile interval (2, K). Below two clusters nothing is known, and the interval is `widest`.

    The percentile interval has no width where all clusters score alike (all right, all wrong): read such a one with its n.
    """
    tail = (1 - level) / 2
    quantile = np.nanquantile if np.isnan(scores_RK).any() else np.quantile
    found_2K = quantile(scores_RK, [tail, 1 - tail], axis=0)
    return np.where(clusters_K >= 2, found_2K, np.array(widest)[:, None])


def sign_flip(differences_CK: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Two-sided p-values (K,) of 'the two sides may be exchanged', flipping the sign of whole clusters at random.

    `differences_CK` are sums of paired differences per cluster. The observed arrangement counts as one of the draws
    (Phipson & Smyth 2010), so p is never 0 and at least 1 / (resamples + 1).
    """
    clusters, _ = differences_CK.shape
    observed_K = np.abs(differences_CK.sum(axis=0))
    generator = np.random.default_rng([seed, 1])
    as_far_K = np.zeros(differences_CK.shape[1])
    for rows in _blocks(clusters, resamples):
        signs = generator.integers(0, 2, size=(rows, clusters), dtype=np.int8) * np.float64(2) - 1
        as_far_K += (np.abs(signs @ differences_CK) >= observed_K - 1e-9).sum(axis=0)
    return (1 + as_far_K) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the family of all of them (Holm 1979), in the given order; reject where <= the level."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def detectable_difference(differences_R: np.ndarray, *, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `level` would find with probability `power`.

    Normal approximation from the spread of bootstrapped differences: (z_{1-level/2} + z_power) standard errors.
    """
    return float((norm.ppf(1 - level / 2) + norm.ppf(power)) * np.nanstd(differences_R, ddof=1))


def _weights(clusters: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (rows, C) of how often each cluster is drawn in a resample of C clusters."""
    generator = np.random.default_rng([seed, 0])
    for rows in _blocks(clusters, resamples):
        drawn = generator.integers(0, clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(float)


def _blocks(width: int, resamples: int) -> Iterator[int]:
    """Numbers of resamples to draw at once, so that a block has at most `BLOCK` numbers."""
    step = max(1, BLOCK // width)
    for done in range(0, resamples, step):
        yield min(step, resamples - done)
