"""CPU time of feature extraction over the bare forward pass of the encoder, of the probe's grid search over the extraction, and of
multi-label sets: their scores with bootstrap, and a training step over that of a set with one label per image."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from data_prep.phantom.scene.world import item_rng, sample_scene
from data_prep.phantom.writers.folder import render_jpeg
from experiments.bench.measurement import ROUNDS, Measurement, ratio, single, time_alternately
from src.classification.dataset import ClassificationDataset, build_dataset, image_batches
from src.classification.features import extract_features
from src.classification.finetune import TIMED_STEPS, build_classifier, seconds_per_step
from src.classification.layouts import Example
from src.classification.multilabel import MultilabelResult
from src.classification.probe import Split, linear_probe
from src.classification.table import transfer_table
from src.config.train import VisionConfig
from src.config.transfer import FineTuneConfig
from src.model.vision import Vision, load_vision

IMAGES = 2000
BATCH = 32
CPU = torch.device("cpu")


def measure(images: int = IMAGES, architecture: str = "vit_small_patch16_224") -> Iterator[Measurement]:
    """Each round has a fifth of the images. CPU seconds include the decoding threads, which run beside the forward pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vision = load_vision(VisionConfig(format="scratch", architecture=architecture)).eval()
    with tempfile.TemporaryDirectory() as folder:
        data = phantom_dataset(Path(folder), images)
        parts = split_by_round(data)
        blocks = [list(image_batches(part, np.arange(len(part.examples)), size=vision.size, batch=BATCH, threads=2)) for part in parts]
        features: list[dict[str, np.ndarray]] = []
        encode(vision, blocks[0][:2])  # warm-up
        remaining_parts, remaining_blocks = iter(parts), iter(blocks)
        ours, peer = time_alternately(
            lambda: features.append(extract_features(vision, next(remaining_parts), device=CPU, batch=BATCH, threads=2)),
            lambda: encode(vision, next(remaining_blocks)),
        )
    yield ratio("probe_overhead", ours, peer, f"CPU s for {images // ROUNDS} images, {architecture}", target="<= 1.10")
    joined = {pooling: np.concatenate([part[pooling] for part in features]) for pooling in features[0]}
    splits = [Split({how: f[data.rows(s)] for how, f in joined.items()}, data.labels[data.rows(s)]) for s in ("train", "val", "test")]
    start = time.process_time()
    linear_probe(*splits, classes=len(data.classes))
    unit = "share of the CPU time of the extraction"
    yield single("probe_grid", (time.process_time() - start) / sum(ours), unit, target="<= 1.0")
    yield multilabel_scores()
    yield multilabel_step(architecture)


def multilabel_scores(images: int = 25_596, labels: int = 14, resamples: int = 10_000) -> Measurement:
    """All scores with their intervals for a test split of the size of CXR8, in which each image is a group of its own."""
    rng = np.random.default_rng(0)
    labels_NK = rng.random((images, labels)) < np.geomspace(0.002, 0.18, labels)
    p_NK = expit(rng.standard_normal((images, labels)) + 1.5 * labels_NK - 2)
    result = MultilabelResult(labels_NK, np.arange(images), (p_NK >= 0.3)[None], p_NK[None])
    metadata = {"benchmark": "x", "encoder": "x", "protocol": "probe", "classes": [str(k) for k in range(labels)], "ours": False}
    start = time.process_time()
    transfer_table([(metadata, result)], resamples=resamples, seed=0)
    unit = f"CPU s for {images:,} x {labels} with {resamples:,} resamples"
    return single("multilabel_score_seconds", time.process_time() - start, unit, target="<= 60")


def multilabel_step(architecture: str, images: int = 4) -> Measurement:
    """Training steps of the two kinds of sets on the same images."""
    pixels = np.random.default_rng(0).integers(0, 256, (3 * images, 224, 224), np.uint8)
    splits = [split for split in ("train", "val", "test") for _ in range(images)]
    functions = []
    for multilabel in (True, False):
        names = [("ab"[n % 2],) if multilabel else "ab"[n % 2] for n in range(len(pixels))]
        rows = zip(splits, names, pixels, strict=True)
        data = build_dataset("x", [Example(str(n), split, name, str(n), image) for n, (split, name, image) in enumerate(rows)], classes=[])
        config = FineTuneConfig(1, images, [1e-4], 1, 0.0)
        vision = load_vision(VisionConfig(format="scratch", architecture=architecture))
        model = build_classifier(vision, data, pooling="cls", lr=1e-4, config=config)
        functions.append(partial(seconds_per_step, model, data, threads=1, device=CPU))
    ours, peer = time_alternately(*functions)
    unit = f"CPU s for {1 + TIMED_STEPS} steps of {images}, single-label over multi-label, {architecture}"
    return ratio("multilabel_finetune_cost", ours, peer, unit, target=">= 0.95", cost=True)


def phantom_dataset(folder: Path, images: int) -> ClassificationDataset:
    examples = []
    for n in range(images):
        rng = item_rng(0, "overhead", "", n)
        path = folder / f"{n}.jpg"
        path.write_bytes(render_jpeg(sample_scene(rng), rng))
        examples.append(Example(path.name, "", "abc"[n % 3], path.name, path))
    return build_dataset("overhead", examples, classes=[])


def split_by_round(data: ClassificationDataset) -> list[ClassificationDataset]:
    size = len(data.examples) // ROUNDS
    slices = [slice(n * size, (n + 1) * size) for n in range(ROUNDS)]
    return [
        ClassificationDataset(data.name, data.classes, data.examples[at], data.labels[at], data.generated_split, data.fingerprint)
        for at in slices
    ]


@torch.inference_mode()
def encode(vision: Vision, blocks: list[torch.Tensor]) -> None:
    for x_N3HW in blocks:
        vision.encode(vision.normalise(x_N3HW))
