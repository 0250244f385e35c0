import numpy as np
import pytest
import xxhash

from src.data.mixture import BLOCK, Mixture, counts_per_block, local_permutation

SHARES = {"a": 0.5, "b": 0.3, "none": 0.0, "c": 0.2}
ROWS = {"a": np.arange(100, 7100), "b": np.arange(0, 900) * 3, "none": np.arange(5), "c": np.array([7, 11, 13])}
SIZES = {"a": np.array([50, 20] * 100), "b": np.array([200, 1, 199, 300, 200]), "none": np.array([5]), "c": np.array([1, 2])}
both = pytest.mark.parametrize("sizes", [None, SIZES], ids=["global", "blocks"])


def mixture(seed: int = 3, sizes: dict | None = None) -> Mixture:
    return Mixture(SHARES, ROWS, seed=seed, shard_sizes=sizes)


@both
def test_take_of_a_range_is_a_slice_of_the_stream(sizes):
    whole = mixture(sizes=sizes).take(0, 3 * BLOCK)
    seeking = mixture(sizes=sizes)
    for start, stop in [(29_990, 30_000), (BLOCK - 3, BLOCK + 5), (12_345, 12_346), (0, 17), (5_000, 25_000)]:
        for part, column in zip(seeking.take(start, stop), whole, strict=True):
            assert np.array_equal(part, column[start:stop])


@pytest.mark.parametrize(("sizes", "digest"), [(None, "0dccddbbbe58127f"), (SIZES, "6b611a3eccc47210")], ids=["global", "blocks"])
def test_order_of_this_version_never_changes(sizes, digest):
    """Runs resume with the order that they began with; a change needs another VERSION."""
    columns = [column.astype(np.int64) for column in mixture(sizes=sizes).take(0, 3 * BLOCK)]
    assert xxhash.xxh3_64_hexdigest(np.concatenate(columns).tobytes()) == digest


@both
def test_order_depends_on_the_seed(sizes):
    first, same, other = (mixture(seed, sizes).take(0, BLOCK) for seed in (3, 3, 4))
    assert np.array_equal(first[1], same[1])
    assert not np.array_equal(first[1], other[1])


@both
def test_order_of_the_shares_does_not_change_the_stream(sizes):
    reordered = Mixture(dict(reversed(SHARES.items())), ROWS, seed=3, shard_sizes=sizes)
    assert reordered.sources == mixture().sources == ["a", "b", "c"]
    for column, expected in zip(reordered.take(0, 2 * BLOCK), mixture(sizes=sizes).take(0, 2 * BLOCK), strict=True):
        assert np.array_equal(column, expected)


def test_counts_per_block_do_not_depend_on_the_order_of_the_shares():
    """Also if the first of two equal sources gives up positions for tiny shares."""
    shares = {"a": 1e9, "b": 1e9, "c": 1, "d": 1, "e": 1, "f": 1}
    assert counts_per_block(shares) == counts_per_block(dict(reversed(shares.items())))


def test_every_block_has_exact_shares():
    sources = mixture().take(0, 4 * BLOCK)[0].reshape(4, BLOCK)
    for block in sources:
        assert np.bincount(block).tolist() == [5000, 3000, 2000]


@both
def test_epoch_has_every_row_once_and_each_epoch_another_order(sizes):
    source, row = mixture(sizes=sizes).take(0, 3 * BLOCK)
    for number, name in enumerate(("a", "b", "c")):
        taken, rows = row[source == number], ROWS[name]
        epochs = taken[: len(taken) // len(rows) * len(rows)].reshape(-1, len(rows))
        assert len(epochs) >= 2
        assert all(np.array_equal(np.sort(epoch), rows) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_neighbouring_rows_of_an_epoch_are_uncorrelated():
    source, row = mixture().take(0, BLOCK)
    taken = row[source == 0]
    assert abs(np.corrcoef(taken[:-1], taken[1:])[0, 1]) < 0.05


def test_blocks_spread_a_shard_over_a_fortieth_of_an_epoch_at_a_random_place():
    """The records of a shard are neither in their order nor far from each other; few shards are the same as a global permutation."""
    epoch = local_permutation(SIZES["a"], np.random.default_rng(0))
    shard_N = np.repeat(np.arange(200), SIZES["a"])[epoch]
    places = [np.flatnonzero(shard_N == shard) for shard in range(200)]
    ranges = np.array([place[-1] - place[0] for place in places])
    assert ranges.max() < 1.4 * 7000 / 40
    assert np.median(ranges) > 0.7 * 7000 / 40
    middles = np.array([place.mean() for place in places])
    assert abs(np.corrcoef(middles, np.arange(200))[0, 1]) < 0.3
    correlations = [np.corrcoef(epoch[place], place)[0, 1] for place in places]
    assert abs(np.mean(correlations)) < 0.1
    two = [local_permutation(np.array([3000, 4000]), np.random.default_rng(0)), np.random.default_rng(0).permutation(7000)]
    assert np.array_equal(*two)


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ({"a": 1, "b": 1, "c": 1}, {"a": 3334, "b": 3333, "c": 3333}),
        ({"a": 1e9, "b": 1, "c": 0}, {"a": BLOCK - 1, "b": 1}),
        ({"a": 3.3e6, "b": 5}, {"a": BLOCK - 1, "b": 1}),
    ],
)
def test_counts_per_block_fill_the_block_with_every_source(shares, counts):
    assert sum(counts_per_block(shares).values()) == BLOCK
    assert sorted(counts_per_block(shares).values()) == sorted(counts.values())
    assert set(counts_per_block(shares)) == set(counts)
