"""Which records of a source a run is trained on, and which decide its best checkpoint: never a record or a group of both."""

from pathlib import Path

import numpy as np

from src.config.train import MixConfig
from src.data.remote import CacheConfig, open_shards
from src.data.shards import Shards
from src.runtime.errors import UserError

MAX_VAL_SHARE = 0.05  # of the training records, that may be held out; our choice
HASHES = 2**63  # groups are hashes below this


def open_sources(root: str | Path, mix: MixConfig, *, cache: CacheConfig | None = None) -> dict[str, Shards]:
    return {source: open_shards(root, source, cache=cache or CacheConfig()) for source in mix.sampling_weights}


def split_rows(shards: dict[str, Shards], mix: MixConfig, *, validate: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The rows that may be drawn, and those that are checked (`data.val_samples` at most), per source."""
    found = {source: split_source(opened, decontaminate=mix.decontaminate, validate=validate) for source, opened in shards.items()}
    for source, (drawn, _) in found.items():
        if len(drawn) == 0:
            raise UserError(f"mix.shares names '{source}', but no training record of it may be used; set mix.shares.{source}=0")
    return {source: drawn for source, (drawn, _) in found.items()}, {source: checked for source, (_, checked) in found.items()}


def split_source(shards: Shards, *, decontaminate: bool, validate: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that may be drawn, at most `validate` rows that are checked), int64, ascending.

    What is checked is the beginning of the validation split. With `decontaminate` neither side holds a record that leaks into a test
    set: what is checked chooses the best checkpoint. A source without a validation record gives up training records, by whole groups in the
    order of their hash: the first that come to `validate` records, without groups that alone are more than `MOST` of the source, and
    never more than that together. It depends on no seed, so that runs over several seeds are on the same data.
    """
    train, val = (shards.rows(split, decontaminate=decontaminate) for split in ("train", "val"))
    if len(val) or not validate or not len(train):
        return train, val[:validate]
    groups = shards.column("group")
    most, bound = int(len(train) * MAX_VAL_SHARE), HASHES * 4 * validate // len(train)
    while True:  # the smallest hashes are enough: sorting millions costs time and memory
        near = np.flatnonzero(groups <= min(bound, HASHES - 1))
        near = near[train[np.searchsorted(train, near).clip(max=len(train) - 1)] == near]
        held = near[_first(groups[near], validate, most=most)]
        if len(held) >= validate or bound >= HASHES:
            return np.delete(train, np.searchsorted(train, held)), held[:validate]
        bound *= 4


def _first(groups_N: np.ndarray, count: int, *, most: int) -> np.ndarray:
    """Which records are of the first groups that come to `count`."""
    _, group_N, counts_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    fits_G = counts_G <= most
    totals_G = np.where(fits_G, counts_G, 0).cumsum()
    return (fits_G & (totals_G <= most) & (totals_G - counts_G < count))[group_N]
