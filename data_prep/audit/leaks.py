"""Which records stand in a test set: fills `leaks_into` of every index: `python -m data_prep.audit out=data/shards raw=data/raw`."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from rich.table import Table

from data_prep.audit.evaluation_sets import EvaluationSet, evaluation_sets, question_hashes
from data_prep.audit.hamming_search import hamming_pairs
from data_prep.audit.near_duplicates import MIN_CORRELATION, correlation, open_grey, thumbnail_variants, variant_hashes
from data_prep.build.index import write_index
from data_prep.build.shard_writer import column
from src.data.record import SPLITS
from src.data.shards import SCHEMA, Shards
from src.runtime import arguments
from src.runtime.atomic_file import atomic_file, explain_full_disk
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.progress import Progress
from src.runtime.tables import print_table

BLOCK = 4096  # records whose text is read at once


@dataclass
class AuditConfig:
    """Finds records of any split but test whose image (or text, where a benchmark has no image) stands in a test set.

    python -m data_prep.audit out=data/shards raw=data/raw

    Test sets are the test split of every source under out= and the classification sets of conf/benchmark under raw=. Shards stay as
    they are; mixes leave such records out.

    out         folder that holds the shards OUT/<source>
    raw         folder that holds classification sets RAW/<benchmark>; without it they are named as not checked
    sources     sources to check, separated by commas (default: all under out=)
    benchmarks  classification sets of your own besides: folders under raw=, separated by commas
    """

    out: Path
    raw: Path | None = None
    sources: list[str] = field(default_factory=list)
    benchmarks: list[str] = field(default_factory=list)


@report_user_errors
def main(words: list[str]) -> None:
    audit_all(arguments.parse_arguments(AuditConfig, words))


def audit_all(config: AuditConfig) -> dict[str, dict[str, Any]]:
    """Writes `audit.json` beside each index; gives them by source."""
    shards = {path.parent.name: Shards(path.parent) for path in sorted(config.out.glob("*/manifest.json"))}
    if not shards:
        raise UserError(f"out={config.out} holds no finished shards; build them with `make shards`")
    for name in config.sources:
        if name not in shards:
            raise UserError(f"source '{name}' has no shards in {config.out}{suggest(name, shards, these='it holds')}")
    found, absent = evaluation_sets(shards, config.raw, own=config.benchmarks)
    known = KnownTestData(found)
    said: dict[str, dict[str, Any]] = {}
    for name in config.sources or shards:
        with explain_full_disk(name, shards[name].folder):
            said[name] = audit_source(name, shards[name], known, absent)
    _print_table(said, absent)
    return said


class KnownTestData:
    """Every test image in all its variants, and every test text."""

    def __init__(self, sets: list[EvaluationSet]):
        self.sets = sets
        self.images = [(one, image) for one in sets for image in one.images]
        found = [variant_hashes(thumbnail_variants(image.open())) for _, image in Progress(self.images, desc="test images", unit="image")]
        self.hashes = np.concatenate(found) if found else np.empty(0, np.uint64)
        self.variants = len(found[0]) if found else 1

    def variants_of(self, image: int) -> np.ndarray:
        return thumbnail_variants(self.images[image][1].open())


def audit_source(name: str, shards: Shards, known: KnownTestData, absent: list[str]) -> dict[str, Any]:
    leaks: defaultdict[int, set[str]] = defaultdict(set)
    trained: defaultdict[str, set[str]] = defaultdict(set)  # test set -> keys of its records that stand in the training split
    split = shards.column("split")
    free, train = split != SPLITS.index("test"), split == SPLITS.index("train")
    matches = [(row, *known.images[image]) for row, image in _same_images(shards, known, free)]
    for row, test, keys in [*((row, test, image.keys) for row, test, image in matches), *_same_texts(shards, known, free)]:
        leaks[row].add(test.name)
        if train[row]:
            trained[test.name].update(keys)
    names = [",".join(sorted(leaks[row])) if row in leaks else "" for row in range(len(shards))]
    columns = {field.name: shards.arrow(field.name) for field in SCHEMA} | {"leaks_into": column(names, pa.string())}
    (shards.folder / "audit.json").unlink(missing_ok=True)  # an audit that is interrupted here leaves none, rather than that of before
    write_index(shards.folder, columns)
    said = {
        "manifest": shards.manifest["fingerprint"],  # of the build that was checked
        "checked": {one.name: one.size for one in known.sets},
        "fingerprints": {one.name: one.fingerprint for one in known.sets},
        "not_checked": absent,
        "leaks": dict(sorted(Counter(name for found in leaks.values() for name in found).items())),
        "records": len(leaks),
        "test_records_in_train": {test: sorted(keys) for test, keys in sorted(trained.items())},
        "images": {"all": int(shards.column("num_images").sum()), "different": len(np.unique(shards.image_hashes()[1]))},
        "groups_on_two_sides": _groups_on_two_sides(shards, ("test",), ("train", "val")),
        "groups_in_train_and_val": _groups_on_two_sides(shards, ("train",), ("val",)),
        "fingerprint": xxhash.xxh3_128_hexdigest("\n".join(names).encode()),
    }
    with atomic_file(shards.folder / "audit.json") as file:
        file.write(json.dumps(said, indent=1).encode())
    return said


def _same_images(shards: Shards, known: KnownTestData, free: np.ndarray) -> list[tuple[int, int]]:
    row_N, hash_N = shards.image_hashes()
    wanted = free[row_N]
    return same_images(row_N[wanted], hash_N[wanted], known, lambda row: shards[row].images)


def same_images(row_N: np.ndarray, hash_N: np.ndarray, known: KnownTestData, images: Callable[[int], list[bytes]]) -> list[tuple[int, int]]:
    """(row, position in `known.images`) of every row and test image that it holds, among rows with these hashes."""
    places, queries = hamming_pairs(hash_N, known.hashes)
    pairs = np.unique(np.stack([queries // known.variants, row_N[places]], 1), axis=0)  # (test image, row)
    found, held, variants_VHW = [], -1, np.empty(0)
    for image, row in Progress(pairs.tolist(), desc="look-alikes", unit="pair"):
        if image != held:
            held, variants_VHW = image, known.variants_of(image)
        thumbnails = [thumbnail_variants(open_grey(data))[0] for data in images(row)]
        if max(correlation(variants_VHW, thumbnail) for thumbnail in thumbnails) >= MIN_CORRELATION:
            found.append((row, image))
    return found


def _same_texts(shards: Shards, known: KnownTestData, free: np.ndarray) -> Iterator[tuple[int, EvaluationSet, list[str]]]:
    """(row, test set, keys of the test records) of every row that holds the text of a test record, or, where the row has no image
    either, its question: a question is known by heart whatever the answer and the order of the options."""
    sets = [one for one in known.sets if one.texts]
    if not sets:
        return
    rows = np.flatnonzero(free & (shards.column("num_images") == 0))
    row_Q, hash_Q = _questions(shards, rows)
    row_Q = np.concatenate([np.flatnonzero(free), row_Q])
    hash_Q = np.concatenate([shards.column("text_hash")[free], hash_Q])
    for one in sets:
        known_Q = np.isin(hash_Q, np.fromiter(one.texts, np.uint64))
        for row, hashed in zip(row_Q[known_Q].tolist(), hash_Q[known_Q].tolist(), strict=True):
            yield row, one, one.texts[hashed]


def _questions(shards: Shards, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, hash) of every question of these rows, int64 and uint64."""
    row_of, found = [], []
    for at in Progress(range(0, len(rows), BLOCK), desc="questions", unit="block"):
        block = rows[at : at + BLOCK].tolist()
        for row, record in zip(block, shards.texts(block), strict=True):
            hashed = question_hashes(record)
            row_of += [row] * len(hashed)
            found += hashed
    return np.array(row_of, np.int64), np.array(found, np.uint64)


def _groups_on_two_sides(shards: Shards, here: tuple[str, ...], there: tuple[str, ...]) -> int:
    """Patients, slides or figures that stand in splits on both sides."""
    groups, split = shards.column("group"), shards.column("split")
    one, other = (groups[np.isin(split, [SPLITS.index(name) for name in names])] for names in (here, there))
    return len(np.intersect1d(one, other))


def _print_table(said: dict[str, dict[str, Any]], absent: list[str]) -> None:
    names = ("source", "leaks into", "records", "groups in test and elsewhere", "in train and val", "images", "different")
    table = Table(*names, box=None, pad_edge=False)
    for source, found in said.items():
        leaks = ", ".join(f"{name} {count:,}" for name, count in found["leaks"].items()) or "-"
        counts = [found[key] for key in ("records", "groups_on_two_sides", "groups_in_train_and_val")] + list(found["images"].values())
        table.add_row(source, leaks, *(f"{count:,}" for count in counts))
    print_table(table)
    if absent:
        print(f"not checked, since not on disk: {', '.join(absent)}")


if __name__ == "__main__":
    main(sys.argv[1:])
