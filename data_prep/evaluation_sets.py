"""The test sets that a model will be judged on, as far as they are on disk: what training records must not contain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from data_prep.encode import BadImage, open_image
from data_prep.thumbnail import open_grey
from src.data.open_image import rgb
from src.data.shards import Shards
from src.errors import UserError

CONF = Path(__file__).resolve().parent.parent / "conf" / "benchmark"


@dataclass
class EvaluationSet:
    """The test split of one benchmark. `images` open one by one; `texts` are the text hashes where there is no image."""

    name: str
    images: list[Callable[[], Image.Image]] = field(default_factory=list)
    texts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def evaluation_sets(shards: dict[str, Shards], raw: Path | None, *, own: Sequence[str] = ()) -> tuple[list[EvaluationSet], list[str]]:
    """(the sets that are on disk, the names of those that are not): every file of `conf/benchmark`, and the classification sets `own`.

    Questions come from `shards`, classification sets from `raw/<name>`. Benchmarks on the same rows (such as the official and
    the image-disjoint split of VQA-RAD) are one set under the first name. One of `own` that cannot be read raises `UserError`.
    """
    if own and raw is None:
        raise UserError(f"benchmarks={','.join(own)} stand below raw=, which is missing; give raw=...")
    found, absent, seen = [], [], set()
    for path in sorted(CONF.glob("*.yaml")):
        said = yaml.safe_load(path.read_text())
        if "layout" in said:
            there = raw is not None and (raw / path.stem).is_dir()
            made = _classification(path.stem, raw) if there and raw else None
        else:
            place = (said["source"], said["split"])
            if place in seen:
                continue
            seen.add(place)
            made = _questions(path.stem, said, shards)
        if made:
            found.append(made)
        else:
            absent.append(path.stem)
    known = {one.name for one in found}
    return found + [_classification(name, raw) for name in own if raw and name not in known], absent


def _questions(name: str, said: dict[str, Any], shards: dict[str, Shards]) -> EvaluationSet | None:
    source = shards.get(said["source"])
    rows = source.rows(said["split"]) if source else np.empty(0, np.int64)
    if source is None or not len(rows):
        return None
    row_of, hashes = source.image_hashes()
    here = np.isin(row_of, rows)
    if not here.any():
        return EvaluationSet(name, texts=np.unique(source.column("text_hash")[rows]))
    # Many questions stand on one picture; blank ones of different patients have one hash.
    told = [hashes[here], *(source.column(column)[row_of[here]].astype(np.uint64) for column in ("group", "width", "height"))]
    _, first = np.unique(np.stack(told), axis=1, return_index=True)
    kept = np.unique(row_of[here][first])
    return EvaluationSet(name, images=[opener for row in kept for opener in _openers(source, int(row))])


def _openers(source: Shards, row: int) -> list[Callable[[], Image.Image]]:
    return [partial(_from_shards, source, row, position) for position in range(int(source.column("num_images")[row]))]


def _from_shards(source: Shards, row: int, position: int) -> Image.Image:
    return open_grey(source[row].images[position])


def _classification(name: str, raw: Path) -> EvaluationSet:
    from src.data import classification  # brings torch along, which only this needs

    data = classification.read(name, raw=raw)
    return EvaluationSet(name, images=[partial(_from_raw, data.examples[row].image) for row in data.rows("test")])


def _from_raw(image: Path | np.ndarray) -> Image.Image:
    if not isinstance(image, Path):
        return rgb(Image.fromarray(image))
    try:
        return open_image(image.read_bytes())
    except BadImage as error:
        raise UserError(f"{image} cannot be compared with any record ({error}); fetch it again") from None
