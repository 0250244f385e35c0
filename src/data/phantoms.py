"""Data that only stand for a dataset: `data_prep.phantom` has drawn them."""

from collections.abc import Iterable

PHANTOM = ".phantom.json"  # in a raw folder that was drawn


def phantom_notice(names: Iterable[str]) -> str:
    """The sentence on the datasets that were not used; empty without names."""
    listed = ", ".join(names)
    return listed and f"Phantoms, drawn by a program in the layout of the dataset that is named, with nothing of it: {listed}."
