"""Sub-sets of a source: the datasets that it was compiled from, which `meta.dataset` of its records names.

`subsets.arrow` beside the index holds the sub-set of each row, so `mix.exclude` and `mix.max_per_subset` need no rebuild. Names are
compared without case, blanks and punctuation, because copies of a dataset spell them differently.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import yaml

from src.config.train import MixConfig
from src.data.shards import Shards
from src.data.source_entries import source_entries
from src.runtime import paths
from src.runtime.errors import UserError, suggest

OVERLAPS_YAML = paths.REPOSITORY / "data_prep" / "overlaps.yaml"


@cache
def release_overlaps() -> dict[str, list[dict[str, str]]]:
    """`data_prep/overlaps.yaml`: per transfer set, {with, strength, evidence, from} of the training data from the same source release."""
    return yaml.load(OVERLAPS_YAML.read_text(), Loader=yaml.CSafeLoader)


def with_default_exclusions(mix: MixConfig) -> MixConfig:
    """The mix with `exclude` of `sources.yaml` for the sources that `mix.exclude` does not name. It does not change without such a key."""
    known = source_entries()
    defaults = {source: known[source]["exclude"] for source in mix.sampling_weights if known.get(source, {}).get("exclude")}
    return replace(mix, exclude=defaults | (mix.exclude or {})) if defaults else mix


def comparable(name: str) -> str:
    """Letters and digits of a name, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_subsets(shards: Shards, mix: MixConfig, source: str) -> None:
    """Raises `UserError` if the mix selects sub-sets of a source without any, or excludes one that this source does not have.

    A published sub-set of `sources.yaml` may be absent from the shards: then nothing is left to exclude.
    """
    excluded, limit = (mix.exclude or {}).get(source, []), (mix.max_per_subset or {}).get(source)
    names = shards.subsets[0] if excluded or limit else []
    if (excluded or limit) and not names:
        key = "exclude" if excluded else "max_per_subset"
        raise UserError(f"mix.{key}.{source}: {shards.location} has no sub-sets; remove the key, or build it again with `make shards`")
    known = {comparable(name): name for name in [*source_entries().get(source, {}).get("subsets", {}), *filter(None, names)]}
    for name in excluded:
        if comparable(name) not in known:
            raise UserError(f"mix.exclude.{source} names '{name}', which is no sub-set of this source{suggest(name, known.values())}")


def select_subsets(shards: Shards, rows: np.ndarray, *, exclude: Iterable[str] = (), limit: int | None = None) -> np.ndarray:
    """`rows` without those of the sub-sets `exclude`, and at most `limit` of each other sub-set; ascending.

    Which rows of a sub-set remain is decided by hashes of their texts and groups: it depends neither on a seed nor on other records, and a
    larger limit adds rows to those of a smaller one.
    """
    left_out = {comparable(name) for name in exclude}
    if not left_out and limit is None:
        return rows
    names, number_N = shards.subsets
    numbers = number_N[rows]
    keep = ~np.isin(numbers, [number for number, name in enumerate(names) if comparable(name) in left_out])
    if limit is not None:
        hashes = shards.column("text_hash")[rows] ^ shards.column("group")[rows].view(np.uint64)
        for number in np.unique(numbers[keep]).tolist():
            (at,) = np.nonzero(numbers == number)
            keep[at[np.argsort(hashes[at], kind="stable")[limit:]]] = False
    return rows[keep]


def subset_usage(shards: Shards, rows: np.ndarray, *, exclude: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Per sub-set: its `records` in the training split, how many of them are in `rows`, as `used`, and whether it is `excluded`."""
    names, number_N = shards.subsets
    left_out = {comparable(name) for name in exclude}
    records, used = (np.bincount(number_N[some], minlength=len(names)).tolist() if names else [] for some in (shards.rows("train"), rows))
    return {
        name or "(none)": {"records": records[number], "used": used[number], "excluded": comparable(name) in left_out}
        for number, name in enumerate(names)
    }


def mix_usage(shards: dict[str, Shards], rows: dict[str, np.ndarray], mix: MixConfig) -> dict[str, dict[str, dict[str, Any]]]:
    """`subset_usage` of every source with its training rows. Prints it if the mix excludes or limits sub-sets."""
    usage = {source: subset_usage(shards[source], some, exclude=mix.selection(source)["exclude"]) for source, some in rows.items()}
    if mix.exclude or mix.max_per_subset:
        for source, by_name in usage.items():
            for name, text in usage_texts(by_name).items():
                print(f"{source}/{name}: {text}")
    return usage


def usage_texts(usage: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Per sub-set: how many of its training records are used, and why not all."""
    return {
        name: f"{counts['used']:,} of {counts['records']:,} training records" + (", excluded" if counts["excluded"] else "")
        for name, counts in usage.items()
    }
