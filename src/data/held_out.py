"""Which records of a source a run is trained on, and which decide its best checkpoint: never a record or a group of both."""

import numpy as np

from src.data.shards import Shards

MOST = 0.05  # of the training records, that may be held out; our choice


def sides(shards: Shards, *, decontaminate: bool, validate: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that may be drawn, at most `validate` rows that are checked), int64, ascending.

    What is checked is the beginning of the validation split. A source without one gives up training records, by whole groups in the
    order of their hash: the first that come to `validate` records, without groups that alone are more than `MOST` of the source, and
    never more than that together. It depends on no seed, so that runs over several seeds are on the same data.
    """
    train, val = shards.rows("train", decontaminate=decontaminate), shards.rows("val")
    if len(val) or not validate:
        return train, val[:validate]
    groups_N = shards.column("group")[train]
    groups_G, counts_G = np.unique(groups_N, return_counts=True)
    most = int(len(train) * MOST)
    fits = counts_G <= most
    groups_G, counts_G = groups_G[fits], counts_G[fits]
    totals_G = counts_G.cumsum()
    held_G = groups_G[(totals_G <= most) & (totals_G - counts_G < validate)]
    if not len(held_G):
        return train, val
    near = np.flatnonzero(groups_N <= held_G[-1])
    held = near[np.isin(groups_N[near], held_G)]
    return np.delete(train, held), train[held][:validate]
