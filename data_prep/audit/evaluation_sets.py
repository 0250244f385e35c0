"""The test sets that a model will be judged on, as far as they are on disk: what training records must not contain."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.audit.near_duplicates import open_grey
from data_prep.build.chunking import text_hash
from data_prep.build.encode import InvalidImage, open_image
from src.data.open_image import rgb
from src.data.record import Record
from src.data.shards import Shards
from src.data.test_sets import described, set_name
from src.runtime.errors import UserError


@dataclass
class TestImage:
    """`keys` are the test records that show it; a classification set has none."""

    open: Callable[[], Image.Image]
    keys: list[str] = field(default_factory=list)


@dataclass
class EvaluationSet:
    """The test split of one benchmark: its images, and the hashes of the texts and questions that stand without an image."""

    name: str
    images: list[TestImage] = field(default_factory=list)
    texts: dict[int, list[str]] = field(default_factory=dict)  # hash -> keys of the test records with this text or question
    fingerprint: str = ""  # of the build or the files that were read

    @property
    def size(self) -> int:
        """Images, and records without one."""
        return len(self.images) + len({key for keys in self.texts.values() for key in keys})


def evaluation_sets(shards: dict[str, Shards], raw: Path | None, *, own: Sequence[str] = ()) -> tuple[list[EvaluationSet], list[str]]:
    """(the sets that are on disk, the names of those that are not): every file of `conf/benchmark`, the test split of every other
    source of `shards`, and the classification sets `own`.

    Questions come from `shards`, classification sets from `raw/<name>`. Benchmarks on the same rows (such as the official and
    the image-disjoint split of VQA-RAD) are one set under the first name. One of `own` that cannot be read raises `UserError`.
    """
    if own and raw is None:
        raise UserError(f"benchmarks={','.join(own)} stand below raw=, which is missing; give raw=...")
    classified = [name for name, one in described().items() if "layout" in one]
    there = [name for name in classified if raw is not None and (raw / name).is_dir()]
    found = [_classification(name, raw) for name in dict.fromkeys([*there, *own]) if raw]
    absent = [name for name in classified if name not in there]
    splits = [(one["source"], one["split"]) for one in described().values() if "layout" not in one]
    for source, split in dict.fromkeys([*splits, *((source, "test") for source in shards)]):
        made = _questions(source, split, shards[source]) if source in shards else None
        if made:
            found.append(made)
        elif (source, split) in splits:
            absent.append(set_name(source, split))
    return sorted(found, key=lambda one: one.name), sorted(absent)


def _questions(source: str, split: str, shards: Shards) -> EvaluationSet | None:
    rows = shards.rows(split)
    if not len(rows):
        return None
    made = EvaluationSet(set_name(source, split), fingerprint=shards.manifest["fingerprint"])
    groups, widths, heights = (shards.column(name) for name in ("group", "width", "height"))
    row_N, hash_N = shards.image_hashes()
    here_N = np.isin(row_N, rows)
    images: dict[tuple, TestImage] = {}  # many questions stand on one image; blank ones of different patients have one hash
    before: Counter[int] = Counter()
    for row, hashed in zip(row_N[here_N].tolist(), hash_N[here_N].tolist(), strict=True):
        opener = partial(_from_shards, shards, row, before[row])
        before[row] += 1
        image = images.setdefault((hashed, groups[row], widths[row], heights[row]), TestImage(opener))
        image.keys.append(shards.arrow("key")[row].as_py())
    made.images = list(images.values())
    text_only = rows[shards.column("num_images")[rows] == 0].tolist()
    text_hashes = shards.column("text_hash")
    for row, record in zip(text_only, shards.texts(text_only), strict=True):
        for hashed in {int(text_hashes[row]), *question_hashes(record)}:
            made.texts.setdefault(hashed, []).append(record.key)
    return made


def question_hashes(record: Record) -> list[int]:
    """Of each question of a record without its answer and its options, or of its caption."""
    return [text_hash(question) for question, _ in record.turns] or [text_hash(record.caption)]


def _from_shards(source: Shards, row: int, position: int) -> Image.Image:
    return open_grey(source[row].images[position])


def _classification(name: str, raw: Path) -> EvaluationSet:
    from src.classification import dataset  # brings torch along, which only this needs

    data = dataset.read_dataset(name, raw=raw)
    images = [TestImage(partial(_from_raw, data.examples[row].image)) for row in data.rows("test")]
    return EvaluationSet(name, images=images, fingerprint=data.fingerprint)


def _from_raw(image: Path | np.ndarray) -> Image.Image:
    if not isinstance(image, Path):
        return rgb(Image.fromarray(image))
    try:
        return open_image(image.read_bytes())
    except InvalidImage as error:
        raise UserError(f"{image} cannot be compared with any record ({error}); fetch it again") from None
