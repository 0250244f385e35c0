"""Finds records that occur in a test set and fills `leaks_into` of every index; run by `python -m data_prep.audit`."""

import json
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
from data_prep.build.index import write_index
from data_prep.build.shard_writer import column
from src.data.hamming_search import hamming_pairs
from src.data.near_duplicates import MIN_CORRELATION, correlation, open_grey, thumbnail_variants, variant_hashes
from src.data.record import SPLITS
from src.data.shards import SCHEMA, Shards
from src.runtime.arguments import parse_arguments
from src.runtime.atomic_file import atomic_file, explain_full_disk
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.hashing import file_sha256
from src.runtime.progress import Progress
from src.runtime.tables import print_table

BLOCK = 4096  # records whose text is read at once


@dataclass
class AuditConfig:
    """Finds records outside the test splits whose image (or text, if a benchmark has no images) occurs in a test set.

    python -m data_prep.audit out=data/shards raw=data/raw

    Test sets are the test split of every source in out= and the classification sets of conf/benchmark in raw=. The result is written to
    the index of each source; its tars stay unchanged. Training mixes leave such records out.

    out         folder with the shards OUT/<source>
    raw         folder with classification sets RAW/<benchmark>; without it, they are reported as not checked
    sources     sources to check, separated by commas (default: all in out=)
    benchmarks  additional classification sets of your own: folders in raw=, separated by commas
    """

    out: Path
    raw: Path | None = None
    sources: list[str] = field(default_factory=list)
    benchmarks: list[str] = field(default_factory=list)


@report_user_errors
def main(args: list[str]) -> None:
    audit_all(parse_arguments(AuditConfig, args))


def audit_all(config: AuditConfig) -> dict[str, dict[str, Any]]:
    """Writes `audit.json` next to each index; returns their contents by source."""
    shards = {path.parent.name: Shards(path.parent) for path in sorted(config.out.glob("*/manifest.json"))}
    if not shards:
        raise UserError(f"out={config.out}: no finished shards; build them with `make shards`")
    for name in config.sources:
        if name not in shards:
            raise UserError(f"sources={name}: no shards in {config.out}{suggest(name, shards, these='it holds')}")
    sets, missing = evaluation_sets(shards, config.raw, extra=config.benchmarks)
    known = KnownTestData(sets)
    results: dict[str, dict[str, Any]] = {}
    for name in config.sources or shards:
        with explain_full_disk(name, shards[name].folder):
            results[name] = audit_source(shards[name], known, missing)
    _print_table(results, missing)
    return results


class KnownTestData:
    """Every test image in all its variants, and every test text."""

    def __init__(self, sets: list[EvaluationSet]):
        self.sets = sets
        self.images = [(one, image) for one in sets for image in one.images]
        hashes = [variant_hashes(thumbnail_variants(image.open())) for _, image in Progress(self.images, desc="test images", unit="image")]
        self.hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        self.variants = len(hashes[0]) if hashes else 1

    def variants_of(self, image: int) -> np.ndarray:
        return thumbnail_variants(self.images[image][1].open())


def audit_source(shards: Shards, known: KnownTestData, missing: list[str]) -> dict[str, Any]:
    """Fills `leaks_into` of the index and writes `audit.json` of one source."""
    leaks: defaultdict[int, set[str]] = defaultdict(set)  # row -> test sets
    trained: defaultdict[str, set[str]] = defaultdict(set)  # test set -> keys of its records that occur in the training split
    split = shards.column("split")
    not_test, train = split != SPLITS.index("test"), split == SPLITS.index("train")
    image_matches = [(row, *known.images[image]) for row, image in _same_images(shards, known, not_test)]
    matches = [*((row, test_set, image.keys) for row, test_set, image in image_matches), *_same_texts(shards, known, not_test)]
    for row, test_set, keys in matches:
        leaks[row].add(test_set.name)
        if train[row]:
            trained[test_set.name].update(keys)
    names = [",".join(sorted(leaks[row])) if row in leaks else "" for row in range(len(shards))]
    columns = {field.name: shards.arrow(field.name) for field in SCHEMA} | {"leaks_into": column(names, pa.string())}
    (shards.folder / "audit.json").unlink(missing_ok=True)  # so that an interrupted audit leaves none instead of an outdated one
    write_index(shards.folder, columns)
    index = shards.folder / "index.arrow"
    result = {
        "manifest": shards.manifest["fingerprint"],  # of the audited build
        "index": {"size": index.stat().st_size, "sha256": file_sha256(index)},
        "checked": {one.name: one.size for one in known.sets},
        "fingerprints": {one.name: one.fingerprint for one in known.sets},
        "not_checked": missing,
        "leaks": dict(sorted(Counter(name for test_sets in leaks.values() for name in test_sets).items())),
        "records": len(leaks),
        "test_records_in_train": {name: sorted(keys) for name, keys in sorted(trained.items())},
        "images": {"all": int(shards.column("num_images").sum()), "different": len(np.unique(shards.image_hashes()[1]))},
        "groups_on_two_sides": _num_shared_groups(shards, ("test",), ("train", "val")),
        "groups_in_train_and_val": _num_shared_groups(shards, ("train",), ("val",)),
        "fingerprint": xxhash.xxh3_128_hexdigest("\n".join(names).encode()),
    }
    with atomic_file(shards.folder / "audit.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    return result


def _same_images(shards: Shards, known: KnownTestData, not_test: np.ndarray) -> list[tuple[int, int]]:
    row_N, hash_N = shards.image_hashes()
    selected_N = not_test[row_N]
    return same_images(row_N[selected_N], hash_N[selected_N], known, lambda row: shards[row].images)


def same_images(row_N: np.ndarray, hash_N: np.ndarray, known: KnownTestData, images: Callable[[int], list[bytes]]) -> list[tuple[int, int]]:
    """(row, position in `known.images`) for every test image in a row.

    `hash_N` are the perceptual hashes of the images of the rows `row_N`. Candidates with similar hashes are compared by their pixels,
    which `images` returns for a row.
    """
    places, queries = hamming_pairs(hash_N, known.hashes)
    pairs = np.unique(np.stack([queries // known.variants, row_N[places]], 1), axis=0)  # (test image, row)
    matches, current, variants_VHW = [], -1, np.empty(0)
    for image, row in Progress(pairs.tolist(), desc="similar images", unit="pair"):
        if image != current:
            current, variants_VHW = image, known.variants_of(image)
        thumbnails = [thumbnail_variants(open_grey(data))[0] for data in images(row)]
        if max(correlation(variants_VHW, thumbnail) for thumbnail in thumbnails) >= MIN_CORRELATION:
            matches.append((row, image))
    return matches


def _same_texts(shards: Shards, known: KnownTestData, not_test: np.ndarray) -> Iterator[tuple[int, EvaluationSet, list[str]]]:
    """(row, test set, keys of the test records) for every row with the text of a test record.

    For rows without an image, the same question is enough: a model can memorise it, whatever the answer and the order of the options.
    """
    sets = [one for one in known.sets if one.texts]
    if not sets:
        return
    row_Q, hash_Q = _questions(shards, np.flatnonzero(not_test & (shards.column("num_images") == 0)))
    row_Q = np.concatenate([np.flatnonzero(not_test), row_Q])
    hash_Q = np.concatenate([shards.column("text_hash")[not_test], hash_Q])
    for one in sets:
        known_Q = np.isin(hash_Q, np.fromiter(one.texts, np.uint64))
        for row, hashed in zip(row_Q[known_Q].tolist(), hash_Q[known_Q].tolist(), strict=True):
            yield row, one, one.texts[hashed]


def _questions(shards: Shards, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, hash) of every question of these rows, int64 and uint64."""
    question_rows, hashes = [], []
    for at in Progress(range(0, len(rows), BLOCK), desc="questions", unit="block"):
        block = rows[at : at + BLOCK].tolist()
        for row, record in zip(block, shards.texts(block), strict=True):
            record_hashes = question_hashes(record)
            question_rows += [row] * len(record_hashes)
            hashes += record_hashes
    return np.array(question_rows, np.int64), np.array(hashes, np.uint64)


def _num_shared_groups(shards: Shards, first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Number of patients, slides or figures with records in splits of both kinds."""
    groups, split = shards.column("group"), shards.column("split")
    one, other = (groups[np.isin(split, [SPLITS.index(name) for name in names])] for names in (first, second))
    return len(np.intersect1d(one, other))


def _print_table(results: dict[str, dict[str, Any]], missing: list[str]) -> None:
    headers = ("source", "leaks into", "records", "groups in test and others", "in train and val", "images", "distinct")
    table = Table(*headers, box=None, pad_edge=False)
    for source, result in results.items():
        leaks = ", ".join(f"{name} {count:,}" for name, count in result["leaks"].items()) or "-"
        counts = [result[key] for key in ("records", "groups_on_two_sides", "groups_in_train_and_val")] + list(result["images"].values())
        table.add_row(source, leaks, *(f"{count:,}" for count in counts))
    print_table(table)
    if missing:
        print(f"not checked, because not on disk: {', '.join(missing)}")
