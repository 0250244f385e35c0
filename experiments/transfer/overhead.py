"""What the probe costs over the encoder's bare forward pass on pictures that are decoded already, and the grid over the extraction.

    python -m experiments.transfer.overhead [images] [rounds]

Phantom JPEGs and a ViT-S/16 at 224 with random weights; both sides in turn, medians. Prints one line of JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_prep.phantom.world import item_rng, sample_scene
from data_prep.phantom.writers.folder import photograph
from src.data.classification import Classification, assemble, batches
from src.data.layouts import Example
from src.model.towers import VisionConfig
from src.model.vision import Vision, load_vision
from src.training.features import extract
from src.training.probe import Split, linear

BATCH = 32


def measure(images: int, rounds: int) -> dict:
    """{pipeline, bare, overhead, grid}: seconds, and pipeline over bare; medians of `rounds`."""
    torch.manual_seed(0)
    vision = load_vision(VisionConfig(format="scratch", architecture="vit_small_patch16_224")).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vision = vision.to(device)
    with tempfile.TemporaryDirectory() as folder:
        data = drawn(Path(folder), images)
        blocks = list(batches(data, np.arange(images), size=vision.size, batch=BATCH, threads=2))
        extract(vision, head(data, 2 * BATCH), device=device, batch=BATCH, threads=2)  # warm-up
        bare_times, pipeline_times = [], []
        for _ in range(rounds):
            bare_times.append(timed(lambda: bare(vision, blocks, device))[0])
            seconds, features = timed(lambda: extract(vision, data, device=device, batch=BATCH, threads=2))
            pipeline_times.append(seconds)
    splits = [
        Split({how: f[data.rows(name)] for how, f in features.items()}, data.labels_N[data.rows(name)]) for name in ("train", "val", "test")
    ]
    grid, _ = timed(lambda: linear(*splits, classes=len(data.classes)))
    a, b = statistics.median(pipeline_times), statistics.median(bare_times)
    return {"images": images, "pipeline": a, "bare": b, "overhead": a / b, "grid": grid, "grid_of_extraction": grid / a}


def drawn(folder: Path, images: int) -> Classification:
    found = []
    for n in range(images):
        rng = item_rng(0, "overhead", "", n)
        path = folder / f"{n}.jpg"
        path.write_bytes(photograph(sample_scene(rng), rng))
        found.append(Example(path.name, "", "abc"[n % 3], path.name, path))
    return assemble("overhead", found, classes=[])


def head(data: Classification, images: int) -> Classification:
    return Classification(data.name, data.classes, data.examples[:images], data.labels_N[:images], data.made, data.fingerprint)


@torch.inference_mode()
def bare(vision: Vision, blocks: list[torch.Tensor], device: torch.device) -> None:
    for x_N3HW in blocks:
        vision.encode(vision.normalise(x_N3HW.to(device)))
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work):
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    print(json.dumps(measure(words[0] if words else 2000, words[1] if len(words) > 1 else 3)))
