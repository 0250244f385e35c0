"""Benchmarks: the test questions of one source, and the rows of the images that the model gets with them under each image condition."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from src.config.train import MixConfig
from src.data.record import Record
from src.data.remote import CacheConfig, is_remote, open_shards
from src.data.shards import Shards
from src.data.test_sets import benchmark_name
from src.runtime import paths
from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice, to_typed

CONDITIONS = ("real", "shuffled", "other_modality", "blank", "none")
SHUFFLED = ("shuffled", "other_modality")  # conditions that depend on `shuffle_cycle`
FOLDER = paths.CONF / "benchmark"
SEARCHED_RECORDS = 100  # records of a split among which a source with questions has one
NO_IMAGE = (0, b"")  # the image key of a question without image


@dataclass
class BenchmarkConfig:
    """Keys of a file in conf/benchmark, whose comments explain them."""

    source: str
    split: str
    pooled: bool
    choices: bool
    disjoint: bool
    modality: str = "modality"


@dataclass
class Benchmark:
    """The questions of a benchmark: `items` as in the predictions file, and `rows`, their rows in the shards."""

    name: str
    shards: Shards
    rows: list[int]
    all_rows: list[int]  # `rows` without a limit
    pooled: bool
    choices: bool
    source: str = ""
    split: str = "test"
    modality: str = "modality"  # the key of `Record.meta` with the modality of the images

    @property
    def set_name(self) -> str:
        """The name in the audit of the test set that holds these questions."""
        return benchmark_name(self.source, self.split)

    @cached_property
    def items(self) -> list[dict]:
        return to_items(self.shards, self.rows)

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]


def read_benchmark(name: str, *, root: str | Path, limit: int = 0, cache: CacheConfig | None = None) -> Benchmark:
    """Reads `conf/benchmark/<name>.yaml` and its shards. A source without a file there is a free-text benchmark on its test split.

    `limit` is the number of questions, spread evenly over the split; 0 takes all. Raises `UserError` for an unknown source and for an
    empty split.
    """
    if "/" in name:
        raise UserError(f"benchmark '{name}': a name has no '/'; give a file name of conf/benchmark or a source under {root}")
    path = FOLDER / f"{name}.yaml"
    config = BenchmarkConfig(name, "test", pooled=True, choices=False, disjoint=False)
    if path.exists() and "layout" not in (
        stored := OmegaConf.load(path)
    ):  # with a layout it is a classification set, which can have shards
        config = to_typed(BenchmarkConfig, DictConfig(stored))
    folder = Path(root) / config.source
    if not is_remote(root) and not (folder / "manifest.json").exists():
        available = [path.parent.name for path in Path(root).glob("*/manifest.json")]
        raise UserError(
            f"benchmark '{name}': its shards {folder} do not exist; build them with `make shards SOURCES={config.source}`"
            + suggest(config.source, available)
        )
    shards = open_shards(root, config.source, cache=cache or CacheConfig())
    rows = shards.rows(config.split)
    if config.disjoint:
        groups, train = shards.column("group"), shards.rows("train")
        rows = rows[~np.isin(groups[rows], groups[train]) & ~shards.repeats_image(rows, of=train)]
    if len(rows) == 0:
        raise UserError(f"benchmark '{name}': source '{config.source}' has no record in its {config.split} split; build its shards again")
    all_rows = rows
    if limit and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
    pooled = config.pooled and bool(shards.column("num_images")[rows].any())
    return Benchmark(name, shards, rows.tolist(), all_rows.tolist(), pooled, config.choices, config.source, config.split, config.modality)


def benchmark_names() -> list[str]:
    """Names of the question sets in conf/benchmark. Files with a `layout` are classification sets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if "layout" not in OmegaConf.load(path))


def benchmarks_of_mix(mix: MixConfig, root: str | Path, *, cache: CacheConfig) -> list[str]:
    """The benchmarks that ask about the sources of a mix: those of conf/benchmark, else each source with test questions under `root`.

    `only` and `leave_out` do not matter, so that the trials of an ablation are asked the same. A source without test questions is left
    out. Raises `UserError` if none is left.
    """
    configs = {name: OmegaConf.load(FOLDER / f"{name}.yaml") for name in benchmark_names()}
    by_source = {config.source: name for name, config in configs.items() if not config.disjoint}
    mixed = [name for name, share in mix.shares.items() if share > 0]
    sources = [name for name in mixed if is_remote(root) or (Path(root) / name / "manifest.json").exists()]
    split_of = {source: configs[name].split for source, name in by_source.items()}
    names = [by_source.get(source, source) for source in sources if _has_questions(root, source, split_of.get(source, "test"), cache)]
    if not names:
        raise UserError(
            f"benchmarks: the mix of the run has {', '.join(mixed)}, and no test questions of these are in {root}; add a test split "
            "(test.jsonl) and build the shards again, or give benchmarks=[...] and, if their shards are elsewhere, data_root="
        )
    return names


def _has_questions(root: str | Path, source: str, split: str, cache: CacheConfig) -> bool:
    shards = open_shards(root, source, cache=cache)
    return any(shards.text(row).turns for row in shards.rows(split)[:SEARCHED_RECORDS].tolist())


def to_items(shards: Shards, rows: list[int]) -> list[dict]:
    """Records as items of a predictions file. `image` is the cluster of an answer in the statistics, empty for text-only records."""
    records, counts = (shards.text(row) for row in rows), shards.column("num_images")[rows]
    return [
        {
            "id": record.key,
            "source": record.source,
            "image": (record.group or record.key) if images else "",
            "type": record.type,
            "question": record.question,
            "references": record.references or [record.answer],
            **({"choices": record.choices} if record.choices else {}),
            **_closed(record),
        }
        for record, images in zip(records, counts, strict=True)
    ]


def _closed(record: Record) -> dict:
    """`closed` as the dataset states it, or nothing where it does not."""
    answer_type = str(record.meta.get("answer_type", "")).strip().upper()
    return {"closed": answer_type == "CLOSED"} if answer_type in ("OPEN", "CLOSED") else {}


def image_conditions(test: Benchmark, requested: list[str], *, images: bool = True) -> list[str]:
    """The image conditions to evaluate: `requested`, or only `none` for a text-only benchmark and for a run trained without `images`.

    `other_modality` is left out, with a message, if the records do not name the modalities of the images, or all have the same.
    Raises `UserError` if only `none` is possible and it was not requested.
    """
    for condition in requested:
        check_choice("images", condition, CONDITIONS)
    if images and test.shards.column("num_images")[test.rows].any():
        if "other_modality" not in requested or len(set(_modalities(test, test.all_rows)) - {""}) > 1:
            return list(requested)
        print(f"{test.name}: without other_modality, because its records do not name several modalities")
        return [condition for condition in requested if condition != "other_modality"]
    if "none" not in requested and not images:
        raise UserError(f"images={requested}: the run was trained without images (data.images=false); add 'none'")
    if "none" not in requested:
        raise UserError(f"images={requested}: benchmark '{test.name}' has no images; add 'none', or remove the benchmark")
    return ["none"]


def image_rows(condition: str, test: Benchmark, *, seed: int) -> list[int] | None:
    """For each question, the row that its images are taken from; None for conditions without images of the benchmark.

    With `shuffled`, it is the next row of `shuffle_cycle`: no question keeps its own image, and all questions on one image get the
    same other image. With `other_modality`, it is the next one whose image has another modality.
    """
    if condition in ("blank", "none"):
        return None
    if condition == "real":
        return test.rows
    cycle = shuffle_cycle(test, seed=seed)
    following = cycle[1:] + cycle[:1] if condition == "shuffled" else _next_of_other_modality(cycle, _modalities(test, cycle))
    next_row = dict(zip(_image_keys(test.shards, cycle), following, strict=True))
    return [next_row.get(key, row) for key, row in zip(_image_keys(test.shards, test.rows), test.rows, strict=True)]


def _next_of_other_modality(cycle: list[int], modalities: list[str]) -> list[int]:
    """For each row of the cycle, the next row with another modality; rows without a modality are replaced by any that has one."""
    following, twice = [], list(zip(cycle * 2, modalities * 2, strict=True))
    for n, own in enumerate(modalities):
        following.append(next(row for row, modality in twice[n + 1 :] if modality and modality != own))
    return following


def _modalities(test: Benchmark, rows: list[int]) -> list[str]:
    return [str(test.shards.text(row).meta.get(test.modality) or "") for row in rows]


def shuffle_cycle(test: Benchmark, *, seed: int) -> list[int]:
    """One row per distinct image of the whole split, in random order. `shuffled` replaces each image by the next, as a single cycle.

    It does not depend on `limit`, so that a question gets the same other image with and without a limit.
    """
    first_row: dict[tuple, int] = {}
    for key, row in zip(_image_keys(test.shards, test.all_rows), test.all_rows, strict=True):
        first_row.setdefault(key, row)
    keys = sorted(key for key in first_row if key != NO_IMAGE)
    if len(keys) < 2:
        raise UserError(f"images=[shuffled]: the test split of '{test.name}' needs at least two different images; remove 'shuffled'")
    return [first_row[keys[n]] for n in np.random.default_rng(seed).permutation(len(keys))]


def _image_keys(shards: Shards, rows: list[int]) -> list[tuple[int, bytes]]:
    """Perceptual hashes of the images of each row; copies of an image have equal keys, even in different groups."""
    return list(zip(shards.column("image_hash")[rows].tolist(), shards.arrow("more_hashes").take(rows).to_pylist(), strict=True))
