"""A benchmark: the test questions of one source, and the images that each image condition shows with them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.config import typed
from src.data.images import decode
from src.data.shards import Shards
from src.errors import UserError, nearest

CONDITIONS = ("real", "shuffled", "blank", "none")
FOLDER = Path(__file__).resolve().parent.parent.parent / "conf" / "benchmark"


@dataclass
class Benchmark:
    kind: str
    source: str
    split: str
    pooled: bool


def read(name: str, *, root: str | Path) -> tuple[Benchmark, Shards]:
    """`conf/benchmark/<name>.yaml` with its shards. Any other source under `root` is free-text questions on its test split."""
    path = FOLDER / f"{name}.yaml"
    known = typed(Benchmark, OmegaConf.load(path)) if path.exists() else Benchmark("vqa", name, "test", True)
    folder = Path(root) / known.source
    if not (folder / "manifest.json").exists():
        built = [path.parent.name for path in Path(root).glob("*/manifest.json")]
        raise UserError(f"benchmark '{name}' needs the shards {folder}, which do not exist{nearest(known.source, built)}")
    shards = Shards(folder)
    if len(shards.rows(known.split)) == 0:
        raise UserError(f"benchmark '{name}': source '{known.source}' has no record in its {known.split} split")
    return known, shards


def items(benchmark: Benchmark, shards: Shards, *, limit: int) -> tuple[list[dict], list[int]]:
    """The questions, one dict each as it stands in the predictions file, and their rows in the shards."""
    rows = shards.rows(benchmark.split)
    if limit and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
    found = []
    for row in rows.tolist():
        record = shards.text(row)
        found.append(
            {
                "id": record.key,
                "source": record.source,
                "image": record.group or record.key,
                "type": record.type,
                "question": record.question,
                "references": record.references or [record.answer],
            }
        )
    return found, rows.tolist()


def shown(condition: str, items: list[dict], rows: list[int], *, seed: int) -> list[int | None]:
    """For each question the row whose images are shown with it under `condition`; None = no image of the benchmark.

    Shuffled: the images of the test set change places as a single random cycle, so no question keeps its own and all questions
    on one image get the same other one.
    """
    if condition in ("blank", "none"):
        return [None] * len(rows)
    if condition == "real":
        return list(rows)
    first: dict[str, int] = {}
    for item, row in zip(items, rows, strict=True):
        first.setdefault(item["image"], row)
    if len(first) < 2:
        raise UserError("images=[shuffled] needs at least two different images in the test split, found one; leave 'shuffled' out")
    names = sorted(first)
    cycle = [names[n] for n in np.random.default_rng(seed).permutation(len(names))]
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [first[successor[item["image"]]] for item in items]


def pixels(shards: Shards, row: int, *, size: int, exact: bool) -> list[Tensor]:
    return [torch.from_numpy(decode(image, size=size, exact=exact)) for image in shards[row].images]


def blank(mean: Tensor, size: int) -> Tensor:
    """An image of the encoder's mean colour: what normalises to zero."""
    return (mean.flatten() * 255).round().to(torch.uint8)[:, None, None].expand(3, size, size).contiguous()
