"""Detection rate of the audit for planted copies of test images, by kind, and its rate of false matches.

    python -m experiments.leaks.leaks

Draws phantoms, copies each test image in every way, and runs the search of the audit. Prints the rates and writes leaks.csv.
"""

import csv
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_prep.audit.evaluation_sets import EvaluationImage, EvaluationSet
from data_prep.audit.leaks import KnownTestData, same_images
from data_prep.build.encode import encode_image
from data_prep.phantom.draw import render
from data_prep.phantom.scene.world import item_rng, sample_scene
from src.data.near_duplicates import open_grey
from src.runtime.arguments import parse_arguments
from src.runtime.errors import report_user_errors
from src.runtime.progress import Progress
from src.runtime.run_folder import git_commit

SEED = 20


def crop(image: Image.Image, share: float) -> Image.Image:
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width - left, image.height - top))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again, quality 60": lambda image: image,
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L"),
    "flipped": ImageOps.mirror,
    "2.5% cut on each side": partial(crop, share=0.025),
    "5% cut on each side": partial(crop, share=0.05),
}


def draw(split: str, item: int) -> Image.Image:
    rng = item_rng(SEED, "leaks", split, item)
    return Image.fromarray(render(sample_scene(rng), rng))


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


@dataclass
class LeaksConfig:
    """Measures the detection rate of the audit on planted copies and writes leaks.csv.

    python -m experiments.leaks.leaks tests=1000 others=30000

    tests   test images, each of which is copied in every way (default 1000)
    others  training images that are no copies (default 30000)
    """

    tests: int = 1000
    others: int = 30_000


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(LeaksConfig, args)
    measure(config.tests, config.others)


def measure(num_tests: int, num_others: int) -> None:
    originals = [draw("test", n) for n in Progress(range(num_tests), desc="test images", unit="image")]
    test_images = [EvaluationImage(partial(open_grey, jpeg(image, 92))) for image in originals]
    known = KnownTestData([EvaluationSet("phantom", images=test_images)])
    train: list[bytes] = []
    kinds: list[str] = []
    for kind, copy in KINDS.items():
        train += [jpeg(copy(image), 60 if "60" in kind else 92) for image in originals]
        kinds += [kind] * num_tests
    train += [jpeg(draw("train", n), 92) for n in Progress(range(num_others), desc="other images", unit="image")]
    kinds += ["not a copy"] * num_others
    encoded = [encode_image(data, max_side=384, quality=90) for data in train]
    hashes = np.array([image.hash for image in encoded], np.uint64)
    start = time.perf_counter()
    matches = {row for row, _ in same_images(np.arange(len(train)), hashes, known, lambda row: [encoded[row].jpeg])}
    print(f"searched {len(train):,} images for {num_tests:,} in {time.perf_counter() - start:.1f} s")
    write([[kind, kinds.count(kind), sum(kinds[row] == kind for row in matches)] for kind in [*KINDS, "not a copy"]])


def write(rows: list[list]) -> None:
    with Path(__file__).with_name("leaks.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "planted", "found", "share", "git"])
        for kind, planted, detected in rows:
            share = f"{detected / planted:.5f}"
            table.writerow([kind, planted, detected, share, git_commit()])
            print(f"{kind:28} {planted:7,} {detected:7,} {share}")


if __name__ == "__main__":
    main(sys.argv[1:])
