"""Exact search for pairs of 64-bit hashes at most 7 bits apart: multi-index hashing (Norouzi et al., CVPR 2012).

If two hashes differ in at most 7 bits, at least one of their quarters (16 bits) differs in at most one bit. So each quarter of the
corpus is sorted once, and a query looks into 4 x 17 buckets instead of the whole corpus.
"""

import numpy as np

RADIUS, BANDS, BITS = 7, 4, 16
MASKS = np.array([0, *(1 << bit for bit in range(BITS))], np.uint16)
PAIRS = 4 << 20  # compared at a time, which bounds the memory


def hamming_pairs(corpus_N: np.ndarray, queries_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(corpus positions, query positions) of all pairs of uint64 hashes at most `RADIUS` bits apart.

    Each pair occurs once; pairs are sorted by corpus position, then by query position.
    """
    pair_ids: list[np.ndarray] = []
    for band in range(BANDS):
        shift = np.uint64(band * BITS)
        part_N, part_Q = ((hashes >> shift).astype(np.uint16) for hashes in (corpus_N, queries_Q))
        order_N = np.argsort(part_N, kind="stable")
        sorted_N = corpus_N[order_N]
        starts = np.concatenate([[0], np.cumsum(np.bincount(part_N, minlength=1 << BITS))])
        for mask in MASKS:
            bucket_Q = (part_Q ^ mask).astype(np.int64)
            first_Q = starts[bucket_Q]
            pair_ids += _compare(sorted_N, order_N, queries_Q, first_Q, starts[bucket_Q + 1] - first_Q)
    unique = np.unique(np.concatenate(pair_ids)) if pair_ids else np.empty(0, np.int64)
    return np.divmod(unique, max(len(queries_Q), 1))


def _compare(
    sorted_N: np.ndarray, order_N: np.ndarray, queries_Q: np.ndarray, first_Q: np.ndarray, count_Q: np.ndarray
) -> list[np.ndarray]:
    """Compares each query with its bucket `first : first + count`. A pair id is corpus position x number of queries + query position."""
    pair_ids, total_Q, start = [], np.cumsum(count_Q), 0
    while start < len(queries_Q):
        done = total_Q[start - 1] if start else 0
        stop = max(int(np.searchsorted(total_Q, done + PAIRS, side="right")), start + 1)
        counts = count_Q[start:stop]
        query_P = np.repeat(np.arange(start, stop), counts)
        place_P = np.arange(len(query_P)) + np.repeat(first_Q[start:stop] - (total_Q[start:stop] - counts - done), counts)
        match_P = np.bitwise_count(sorted_N[place_P] ^ queries_Q[query_P]) <= RADIUS
        if match_P.any():
            pair_ids.append(order_N[place_P[match_P]] * len(queries_Q) + query_P[match_P])
        start = stop
    return pair_ids
