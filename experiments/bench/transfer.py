"""CPU time of feature extraction over the bare forward pass of the encoder, and of the probe's grid search over the extraction."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data_prep.phantom.scene.world import item_rng, sample_scene
from data_prep.phantom.writers.folder import photograph
from experiments.bench.measurement import ROUNDS, Measurement, ratio, single, time_alternately
from src.classification.dataset import ClassificationDataset, build_dataset, image_batches
from src.classification.features import extract_features
from src.classification.layouts import Example
from src.classification.probe import Split, linear_probe
from src.config.train import VisionConfig
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
    splits = [Split({how: f[data.rows(s)] for how, f in joined.items()}, data.labels_N[data.rows(s)]) for s in ("train", "val", "test")]
    start = time.process_time()
    linear_probe(*splits, classes=len(data.classes))
    unit = "share of the CPU time of the extraction"
    yield single("probe_grid", (time.process_time() - start) / sum(ours), unit, target="<= 1.0")


def phantom_dataset(folder: Path, images: int) -> ClassificationDataset:
    examples = []
    for n in range(images):
        rng = item_rng(0, "overhead", "", n)
        path = folder / f"{n}.jpg"
        path.write_bytes(photograph(sample_scene(rng), rng))
        examples.append(Example(path.name, "", "abc"[n % 3], path.name, path))
    return build_dataset("overhead", examples, classes=[])


def split_by_round(data: ClassificationDataset) -> list[ClassificationDataset]:
    size = len(data.examples) // ROUNDS
    slices = [slice(n * size, (n + 1) * size) for n in range(ROUNDS)]
    return [
        ClassificationDataset(data.name, data.classes, data.examples[at], data.labels_N[at], data.generated_split, data.fingerprint)
        for at in slices
    ]


@torch.inference_mode()
def encode(vision: Vision, blocks: list[torch.Tensor]) -> None:
    for x_N3HW in blocks:
        vision.encode(vision.normalise(x_N3HW))
