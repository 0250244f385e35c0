"""A benchmark: the test questions of one source, and the images that each image condition shows with them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xxhash
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.data.image_transform import decode_jpeg
from src.data.record import Record
from src.data.remote import CacheConfig, is_remote, open_shards
from src.data.shards import Shards
from src.data.test_sets import benchmark_name
from src.runtime import paths
from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice, to_typed

CONDITIONS = ("real", "shuffled", "blank", "none")
FOLDER = paths.CONF / "benchmark"
NOTHING = (0, b"")  # the picture of a question without an image


@dataclass
class BenchmarkConfig:
    """One file of conf/benchmark; the files explain the keys."""

    source: str
    split: str
    pooled: bool
    choices: bool
    disjoint: bool


@dataclass
class Benchmark:
    """The questions of a benchmark: `items` as they stand in the predictions file, `rows` where they stand in the shards."""

    name: str
    shards: Shards
    rows: list[int]
    whole: list[int]  # the rows without a limit
    pooled: bool
    choices: bool
    source: str = ""
    split: str = "test"

    @property
    def set_name(self) -> str:
        """The test set that the audit knows these questions as, or as a part of."""
        return benchmark_name(self.source, self.split)

    @cached_property
    def items(self) -> list[dict]:
        return to_items(self.shards, self.rows)

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]


def read_benchmark(name: str, *, root: str | Path, limit: int = 0, cache: CacheConfig | None = None) -> Benchmark:
    """`conf/benchmark/<name>.yaml` with its shards. Any other source under `root` is free-text questions on its test split.

    `limit` takes that many questions, spread over the split; 0 takes all.
    """
    if "/" in name:
        raise UserError(f"benchmark '{name}' has a '/'; allowed is the name of a file of conf/benchmark or of a source under {root}")
    path = FOLDER / f"{name}.yaml"
    own = BenchmarkConfig(name, "test", pooled=True, choices=False, disjoint=False)
    known = to_typed(BenchmarkConfig, DictConfig(OmegaConf.load(path))) if path.exists() else own
    folder = Path(root) / known.source
    if not is_remote(root) and not (folder / "manifest.json").exists():
        built = [path.parent.name for path in Path(root).glob("*/manifest.json")]
        raise UserError(f"benchmark '{name}' needs the shards {folder}, which do not exist{suggest(known.source, built)}")
    shards = open_shards(root, known.source, cache=cache or CacheConfig())
    rows = shards.rows(known.split)
    if known.disjoint:
        groups, train = shards.column("group"), shards.rows("train")
        rows = rows[~np.isin(groups[rows], groups[train]) & ~shards.repeats_image(rows, of=train)]
    if len(rows) == 0:
        raise UserError(f"benchmark '{name}': source '{known.source}' has no record in its {known.split} split")
    whole = rows
    if limit and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
    pooled = known.pooled and bool(shards.column("num_images")[rows].any())
    return Benchmark(name, shards, rows.tolist(), whole.tolist(), pooled, known.choices, known.source, known.split)


def benchmark_names() -> list[str]:
    """The question sets of conf/benchmark; a file with a `layout` is a set of images to classify."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if "layout" not in OmegaConf.load(path))


def to_items(shards: Shards, rows: list[int]) -> list[dict]:
    """Records as the predictions file describes them; `image` is what answers are clustered by, empty without any."""
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
    """Whether the dataset calls the question closed, where it says so."""
    said = str(record.meta.get("answer_type", "")).strip().upper()
    return {"closed": said == "CLOSED"} if said in ("OPEN", "CLOSED") else {}


def image_conditions(test: Benchmark, wanted: list[str], *, images: bool = True) -> list[str]:
    """The image conditions under which a benchmark is asked. A text-only one is asked once, as `none`; so is a run without `images`, which
    has learnt nothing of what the projector makes of them."""
    for condition in wanted:
        check_choice("images", condition, CONDITIONS)
    if images and test.shards.column("num_images")[test.rows].any():
        return list(wanted)
    if "none" not in wanted and not images:
        raise UserError(f"images={wanted}: the run was trained without images (data.images=false) and can be shown none; add 'none'")
    if "none" not in wanted:
        raise UserError(f"benchmark '{test.name}' has no images, images={wanted} cannot be shown; add 'none' or leave the benchmark out")
    return ["none"]


def shown_rows(condition: str, test: Benchmark, *, seed: int) -> list[int] | None:
    """For each question the row whose images are shown with it; None where no image of the benchmark is.

    Shuffled: the next image of `cycle`, so no question keeps its own and all questions on one image get the same other one.
    """
    if condition in ("blank", "none"):
        return None
    if condition == "real":
        return test.rows
    rows = shuffle_cycle(test, seed=seed)
    following = dict(zip(_condition_sources(test.shards, rows), rows[1:] + rows[:1], strict=True))
    return [following.get(picture, row) for picture, row in zip(_condition_sources(test.shards, test.rows), test.rows, strict=True)]


def shuffle_cycle(test: Benchmark, *, seed: int) -> list[int]:
    """One row for each different image of the whole split, in random order: the images change places as a single cycle.

    It does not depend on `limit`, so that a question is shown the same other image with and without one.
    """
    first: dict[tuple, int] = {}
    for picture, row in zip(_condition_sources(test.shards, test.whole), test.whole, strict=True):
        first.setdefault(picture, row)
    pictures = sorted(picture for picture in first if picture != NOTHING)
    if len(pictures) < 2:
        raise UserError("images=[shuffled] needs at least two different images in the test split, found one; leave 'shuffled' out")
    return [first[pictures[n]] for n in np.random.default_rng(seed).permutation(len(pictures))]


def _condition_sources(shards: Shards, rows: list[int]) -> list[tuple[int, bytes]]:
    """What each row shows, by the perceptual hashes of its images: copies of an image are one picture, whatever their group."""
    return list(zip(shards.column("image_hash")[rows].tolist(), shards.arrow("more_hashes").take(rows).to_pylist(), strict=True))


def condition_images(
    test: Benchmark, numbers: list[int], condition: str, shown: list[int] | None, *, mean: Tensor, size: int, exact: bool
) -> list[tuple[str, list[Tensor]]]:
    """(name, pixels) of what each of the questions `numbers` shows; equal images have equal names and are decoded once."""
    decoded: dict[str, list[Tensor]] = {"none": []}
    names = []
    for number in numbers:
        if shown:
            data = test.shards[shown[number]].images
            name = xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(image) for image in data))
            if name not in decoded:
                decoded[name] = [torch.from_numpy(decode_jpeg(image, size=size, exact=exact)) for image in data]
        else:
            count = int(test.shards.column("num_images")[test.rows[number]]) if condition == "blank" else 0
            name = f"blank {count}" if count else "none"
            decoded.setdefault(name, [blank_image(mean, size)] * count)
        names.append(name)
    return [(name, decoded[name]) for name in names]


def blank_image(mean: Tensor, size: int) -> Tensor:
    """An image of the encoder's mean colour (uint8 3HW): what normalises to zero."""
    return (mean.flatten().cpu() * 255).round().to(torch.uint8)[:, None, None].expand(3, size, size).contiguous()
