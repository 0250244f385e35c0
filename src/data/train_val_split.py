"""Which records of a source a run trains on, and which choose its best checkpoint. No record and no group is in both."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.config.train import MixConfig
from src.data.remote import CacheConfig, open_shards
from src.data.shards import Shards
from src.data.subsets import check_subsets, select_subsets
from src.runtime.errors import UserError

MAX_VAL_SHARE = 0.05  # of the training records that may become validation records; our choice
HASHES = 2**63  # groups are hashes below this


def open_sources(root: str | Path, mix: MixConfig, *, cache: CacheConfig | None = None) -> dict[str, Shards]:
    return {source: open_shards(root, source, cache=cache or CacheConfig()) for source in mix.sampling_weights}


def split_rows(shards: dict[str, Shards], mix: MixConfig, *, val_samples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(training rows, at most `val_samples` validation rows) per source.

    Raises `UserError` for a source without a training row, or without a sub-set that the mix names.
    """
    train, val = {}, {}
    for source, opened in shards.items():
        check_subsets(opened, mix, source)
        train[source], val[source] = split_source(opened, **mix.selection(source), val_samples=val_samples)
        if len(train[source]) == 0:
            left_out = "leak into test sets or are excluded" if mix.exclude else "leak into test sets"
            reason = f"all its training records {left_out}" if len(opened.rows("train")) else "it has no training split"
            raise UserError(f"mix.shares: no training record of '{source}' may be used, {reason}; set mix.shares.{source}=0")
    return train, val


def split_source(
    shards: Shards, *, decontaminate: bool, val_samples: int, exclude: Sequence[str] = (), max_per_subset: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, at most `val_samples` validation rows) of one source, int64, ascending.

    With a validation split: its first `val_samples` records. Without one: whole groups are moved from training to validation, smallest
    hash first, until there are `val_samples` records or 5% of the source (`MAX_VAL_SHARE`). Groups larger than 5% stay in training.
    `decontaminate` removes leaked records and `exclude` those of sub-sets from both parts, because the validation records choose the best
    checkpoint. `max_per_subset` limits the training records of each sub-set. No seed is used, so runs over several seeds train on the same
    data.
    """
    train, val = (shards.rows(split, decontaminate=decontaminate) for split in ("train", "val"))
    train, val = select_subsets(shards, train, exclude=exclude, limit=max_per_subset), select_subsets(shards, val, exclude=exclude)
    if len(val) or not val_samples or not len(train):
        return train, val[:val_samples]
    groups = shards.column("group")
    max_records, bound = int(len(train) * MAX_VAL_SHARE), HASHES * 4 * val_samples // len(train)
    while True:  # sorting millions of hashes costs time and memory, and the smallest ones suffice
        rows = np.flatnonzero(groups <= min(bound, HASHES - 1))
        rows = rows[train[np.searchsorted(train, rows).clip(max=len(train) - 1)] == rows]
        val = rows[_in_first_groups(groups[rows], val_samples, max_records=max_records)]
        if len(val) >= val_samples or bound >= HASHES:
            return np.delete(train, np.searchsorted(train, val)), val[:val_samples]
        bound *= 4


def _in_first_groups(groups_N: np.ndarray, count: int, *, max_records: int) -> np.ndarray:
    """Whether each record is in the first groups that together have `count` records, bool (N,)."""
    _, group_N, counts_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    fits_G = counts_G <= max_records
    totals_G = np.where(fits_G, counts_G, 0).cumsum()
    return (fits_G & (totals_G <= max_records) & (totals_G - counts_G < count))[group_N]
