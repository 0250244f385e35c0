"""How many planted copies of test images the audit finds, by kind, and how many other pictures it takes for one.

    python -m experiments.leaks.leaks [test images] [other pictures]

Draws phantoms, copies each test image in every way, and lets the audit's own search decide. Prints and writes leaks.csv.
"""

import csv
import io
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_prep.audit.evaluation_sets import EvaluationSet, TestImage
from data_prep.audit.leaks import KnownTestData, same_images
from data_prep.audit.near_duplicates import open_grey
from data_prep.build.encode import encode_image
from data_prep.phantom.draw import render
from data_prep.phantom.scene.world import item_rng, sample_scene
from src.runtime.progress import Progress
from src.runtime.run_folder import git_commit

SEED = 20


def cut(image: Image.Image, share: float) -> Image.Image:
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width - left, image.height - top))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again, quality 60": lambda image: image,
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L"),
    "flipped": ImageOps.mirror,
    "2.5% cut on each side": partial(cut, share=0.025),
    "5% cut on each side": partial(cut, share=0.05),
}


def drawn(split: str, item: int) -> Image.Image:
    rng = item_rng(SEED, "leaks", split, item)
    return Image.fromarray(render(sample_scene(rng), rng))


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def main(tests: int, others: int) -> None:
    originals = [drawn("test", n) for n in Progress(range(tests), desc="test images", unit="image")]
    held = [jpeg(image, 92) for image in originals]
    known = KnownTestData([EvaluationSet("phantom", images=[TestImage(partial(open_grey, data)) for data in held])])
    train: list[bytes] = []
    kinds: list[str] = []
    for kind, copy in KINDS.items():
        train += [jpeg(copy(image), 60 if "60" in kind else 92) for image in originals]
        kinds += [kind] * tests
    train += [jpeg(drawn("train", n), 92) for n in Progress(range(others), desc="other pictures", unit="image")]
    kinds += ["not a copy"] * others
    encoded = [encode_image(data, max_side=384, quality=90) for data in train]
    hashes = np.array([one.hash for one in encoded], np.uint64)
    start = time.perf_counter()
    found = {row for row, _ in same_images(np.arange(len(train)), hashes, known, lambda row: [encoded[row].jpeg])}
    print(f"searched {len(train):,} pictures for {tests:,} in {time.perf_counter() - start:.1f} s")
    write([[kind, kinds.count(kind), sum(kinds[row] == kind for row in found)] for kind in [*KINDS, "not a copy"]])


def write(rows: list[list]) -> None:
    with Path(__file__).with_name("leaks.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "planted", "found", "share", "git"])
        for kind, planted, found in rows:
            share = f"{found / planted:.5f}"
            table.writerow([kind, planted, found, share, git_commit()])
            print(f"{kind:28} {planted:7,} {found:7,} {share}")


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:]) if len(sys.argv) == 3 else (1000, 30_000)))
