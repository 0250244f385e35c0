"""Groups of a classification set that must stay in one split: patients and slides, and near-identical images."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from src.classification.layouts import ClassificationConfig, Example
from src.data.hamming_search import hamming_pairs
from src.data.image_conversion import FORMATS, to_rgb
from src.data.near_duplicates import MIN_CORRELATION, correlation, thumbnail_variants, variant_hashes
from src.data.record import SPLITS
from src.runtime.atomic_file import atomic_file
from src.runtime.errors import UserError, suggest

DUPLICATES = ("", "phash")
SPLIT_RULES = ("official", "disjoint", "generated")
THREADS = 4


def apply_group_rules(name: str, examples: list[Example], config: ClassificationConfig, *, origin: str, cache: Path) -> list[Example]:
    """The examples with the groups and splits that `config` asks for.

    `duplicates: phash` makes near-identical images one group. `splits: disjoint` leaves out images of validation and test whose group an
    earlier split has; `splits: generated` removes the official splits. Prints what was grouped or left out. `cache` is a file that stores
    the pairs of duplicates for the images with the fingerprint `origin`.
    """
    for key, value, allowed in (("duplicates", config.duplicates, DUPLICATES), ("splits", config.splits, SPLIT_RULES)):
        if value not in allowed:
            raise UserError(f"benchmark '{name}': {key}={value!r}{suggest(value, allowed)}")
    if config.duplicates:
        examples = merge_groups(name, examples, _cached_pairs(examples, origin=origin, cache=cache))
    if config.splits == "generated":
        return [example._replace(split="") for example in examples]
    return _disjoint(name, examples) if config.splits == "disjoint" else examples


def merge_groups(name: str, examples: list[Example], pairs: np.ndarray) -> list[Example]:
    """Groups that `pairs` (P, 2) of examples connect become one, under the name of the first. Prints how many there are."""
    if not len(pairs):
        print(f"{name}: no near-identical images")
        return examples
    numbers: dict[str, int] = {}
    group_N = np.array([numbers.setdefault(example.group, len(numbers)) for example in examples])
    links = coo_array((np.ones(len(pairs)), group_N[pairs].T), shape=(len(numbers), len(numbers)))
    _, component_G = connected_components(links, directed=False)
    first: dict[int, str] = {}
    for group, component in zip(numbers, component_G.tolist(), strict=True):
        first.setdefault(component, group)
    merged = [example._replace(group=first[component]) for example, component in zip(examples, component_G[group_N].tolist(), strict=True)]
    copies = np.unique(pairs)
    labels: dict[str, set] = {}
    for n in copies.tolist():
        labels.setdefault(merged[n].group, set()).add(merged[n].label)
    mixed = sum(len(group_labels) > 1 for group_labels in labels.values())
    print(
        f"{name}: {len(copies):,} of {len(examples):,} images are near-identical to another one, in {len(labels):,} groups "
        f"that each stay in one split; {mixed:,} of these groups have images with different labels"
    )
    return merged


def near_identical_pairs(examples: list[Example]) -> np.ndarray:
    """Pairs (P, 2) of positions of images that are the same one, cropped by a few per cent, mirrored or encoded again.

    Like the audit: perceptual hashes at most 7 bits apart, then a correlation of at least `MIN_CORRELATION`. The result does not depend
    on threads. Raises `UserError` for an image that cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        variants = list(pool.map(_variants, examples))
    hashes_NV = np.stack([variant_hashes(x_VHW) for x_VHW in variants])
    first, second = hamming_pairs(hashes_NV[:, 0].copy(), hashes_NV.ravel())
    second //= hashes_NV.shape[1]
    pairs = {(min(pair), max(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True) if pair[0] != pair[1]}
    same = [(a, b) for a, b in sorted(pairs) if _same(variants[a], variants[b])]
    return np.array(same, np.int64).reshape(-1, 2)


def _same(a_VHW: np.ndarray, b_VHW: np.ndarray) -> bool:
    a, b = a_VHW.astype(np.float64), b_VHW.astype(np.float64)
    return max(correlation(a, b[0]), correlation(b, a[0])) >= MIN_CORRELATION


def _variants(example: Example) -> np.ndarray:
    """uint8 x_VHW: a sixth of the memory of floats, and thumbnails have whole values."""
    try:
        if isinstance(example.image, np.ndarray):
            return thumbnail_variants(Image.fromarray(example.image)).astype(np.uint8)
        with Image.open(example.image, formats=FORMATS) as image:
            return thumbnail_variants(to_rgb(image)).astype(np.uint8)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        raise UserError(f"{example.image}: cannot be read as an image; repair or remove it") from None


def _cached_pairs(examples: list[Example], *, origin: str, cache: Path) -> np.ndarray:
    try:
        stored = json.loads(cache.read_bytes())
        if stored["origin"] == origin:
            return np.array(stored["pairs"], np.int64).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    pairs = near_identical_pairs(examples)
    try:
        with atomic_file(cache) as file:
            file.write(json.dumps({"origin": origin, "pairs": pairs.tolist()}).encode())
    except OSError:  # a folder without write permission; the pairs are computed again
        pass
    return pairs


def _disjoint(name: str, examples: list[Example]) -> list[Example]:
    first: dict[str, str] = {}
    for split in SPLITS:
        for example in examples:
            if example.split == split:
                first.setdefault(example.group, split)
    remaining = [example for example in examples if not example.split or first[example.group] == example.split]
    if len(remaining) < len(examples):
        totals, counts = (Counter(example.split for example in some) for some in (examples, remaining))
        text = ", ".join(f"{totals[split] - counts[split]:,} of {totals[split]:,} {split} images" for split in SPLITS[1:])
        print(f"{name}: left out {text}, whose patient or slide is in an earlier split")
    return remaining
