"""The test sets that a model is evaluated on, if they are on disk. Training records must not contain their images and texts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.build.chunking import text_hash
from data_prep.build.encode import InvalidImage, open_image
from src.classification.names import EXTERNAL, set_parts
from src.data.image_conversion import to_rgb
from src.data.near_duplicates import open_grey
from src.data.record import Record
from src.data.shards import Shards
from src.data.test_sets import benchmark_configs, benchmark_name
from src.runtime.errors import UserError


@dataclass
class EvaluationImage:
    """One image of a test set."""

    open: Callable[[], Image.Image]
    keys: list[str] = field(default_factory=list)  # of the test records on this image; empty for a classification set


@dataclass
class EvaluationSet:
    """The test split of one benchmark: its images, and the hashes of its texts and questions without an image."""

    name: str
    images: list[EvaluationImage] = field(default_factory=list)
    texts: dict[int, list[str]] = field(default_factory=dict)  # hash -> keys of the test records with this text or question
    fingerprint: str = ""  # of the build or the files

    @property
    def size(self) -> int:
        """Number of images plus number of records without an image."""
        return len(self.images) + len({key for keys in self.texts.values() for key in keys})


def evaluation_sets(shards: dict[str, Shards], raw: Path | None, *, extra: Sequence[str] = ()) -> tuple[list[EvaluationSet], list[str]]:
    """(sets on disk, names of missing sets): every file of `conf/benchmark`, the test split of every other source, and `extra`.

    Questions are read from `shards`, classification sets, such as those in `extra`, from `raw/<name>`. Benchmarks on the same rows (such
    as the official and the image-disjoint split of VQA-RAD) are one set under the first name. Raises `UserError` if one of `extra`
    cannot be read.
    """
    if extra and raw is None:
        raise UserError(f"benchmarks={','.join(extra)}: raw= is missing; give the folder that holds these sets, raw=...")
    # The test split of an external test is checked under the name of its own set.
    classification = [name for name, config in benchmark_configs().items() if config.get("layout", EXTERNAL) != EXTERNAL]
    on_disk = [name for name in classification if raw is not None and (raw / name).is_dir()]
    sets = [_classification_set(name, raw) for name in dict.fromkeys([*on_disk, *(set_parts(name)[-1] for name in extra)]) if raw]
    missing = [name for name in classification if name not in on_disk]
    splits = [(config["source"], config["split"]) for config in benchmark_configs().values() if "layout" not in config]
    for source, split in dict.fromkeys([*splits, *((source, "test") for source in shards)]):
        question_set = _question_set(source, split, shards[source]) if source in shards else None
        if question_set:
            sets.append(question_set)
        elif (source, split) in splits:
            missing.append(benchmark_name(source, split))
    return sorted(sets, key=lambda one: one.name), sorted(missing)


def _question_set(source: str, split: str, shards: Shards) -> EvaluationSet | None:
    rows = shards.rows(split)
    if not len(rows):
        return None
    result = EvaluationSet(benchmark_name(source, split), fingerprint=shards.manifest["fingerprint"])
    groups, widths, heights = (shards.column(name) for name in ("group", "width", "height"))
    row_N, hash_N = shards.image_hashes()
    in_split_N = np.isin(row_N, rows)
    images: dict[tuple, EvaluationImage] = {}  # many questions share one image; blank images of different patients share one hash
    positions: Counter[int] = Counter()  # row -> images of it so far
    for row, image_hash in zip(row_N[in_split_N].tolist(), hash_N[in_split_N].tolist(), strict=True):
        opener = partial(_open_from_shards, shards, row, positions[row])
        positions[row] += 1
        image = images.setdefault((image_hash, groups[row], widths[row], heights[row]), EvaluationImage(opener))
        image.keys.append(shards.arrow("key")[row].as_py())
    result.images = list(images.values())
    text_only = rows[shards.column("num_images")[rows] == 0].tolist()
    text_hashes = shards.column("text_hash")
    for row, record in zip(text_only, shards.texts(text_only), strict=True):
        for hashed in {int(text_hashes[row]), *question_hashes(record)}:
            result.texts.setdefault(hashed, []).append(record.key)
    return result


def question_hashes(record: Record) -> list[int]:
    """Hashes of each question of a record without answer and options, or of its caption."""
    return [text_hash(question) for question, _ in record.turns] or [text_hash(record.caption)]


def _open_from_shards(shards: Shards, row: int, position: int) -> Image.Image:
    return open_grey(shards[row].images[position])


def _classification_set(name: str, raw: Path) -> EvaluationSet:
    from src.classification.reader import read_dataset  # imports torch, which only this function needs

    data = read_dataset(name, raw=raw)
    images = [EvaluationImage(partial(_open_raw, data.examples[row].image)) for row in data.rows("test")]
    return EvaluationSet(name, images=images, fingerprint=data.fingerprint)


def _open_raw(image: Path | np.ndarray) -> Image.Image:
    if not isinstance(image, Path):
        return to_rgb(Image.fromarray(image))
    try:
        return open_image(image.read_bytes())
    except InvalidImage as error:
        raise UserError(f"{image}: cannot be compared with the records ({error}); download it again") from None
