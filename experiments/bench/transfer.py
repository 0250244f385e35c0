"""What a linear probe costs over the encoder's bare forward pass on pictures that are decoded already, and its grid over the extraction."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data_prep.phantom.scene.world import item_rng, sample_scene
from data_prep.phantom.writers.folder import photograph
from experiments.bench.measured import ROUNDS, Measured, in_turn, ratio, single
from src.classification.dataset import ClassificationDataset, build_dataset, image_batches
from src.classification.features import extract_features
from src.classification.layouts import Example
from src.classification.probe import Split, linear_probe
from src.config.train import VisionConfig
from src.model.vision import Vision, load_vision

IMAGES = 2000
BATCH = 32
CPU = torch.device("cpu")


def measure(images: int = IMAGES, architecture: str = "vit_small_patch16_224") -> Iterator[Measured]:
    """A fifth of the images a round; CPU seconds, so that decoding counts although it happens beside the forward pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vision = load_vision(VisionConfig(format="scratch", architecture=architecture)).eval()
    with tempfile.TemporaryDirectory() as folder:
        data = drawn(Path(folder), images)
        parts = fifths(data)
        blocks = [list(image_batches(part, np.arange(len(part.examples)), size=vision.size, batch=BATCH, threads=2)) for part in parts]
        features: list[dict[str, np.ndarray]] = []
        bare(vision, blocks[0][:2])  # warm-up
        waiting, decoded = iter(parts), iter(blocks)
        ours, peer = in_turn(
            lambda: features.append(extract_features(vision, next(waiting), device=CPU, batch=BATCH, threads=2)),
            lambda: bare(vision, next(decoded)),
        )
    yield ratio("probe_overhead", ours, peer, f"CPU s for {images // ROUNDS} images, {architecture}", target="<= 1.10")
    joined = {how: np.concatenate([found[how] for found in features]) for how in features[0]}
    splits = [Split({how: f[data.rows(s)] for how, f in joined.items()}, data.labels_N[data.rows(s)]) for s in ("train", "val", "test")]
    begun = time.process_time()
    linear_probe(*splits, classes=len(data.classes))
    yield single("probe_grid", (time.process_time() - begun) / sum(ours), "of the extraction's CPU time", target="<= 1.0")


def drawn(folder: Path, images: int) -> ClassificationDataset:
    found = []
    for n in range(images):
        rng = item_rng(0, "overhead", "", n)
        path = folder / f"{n}.jpg"
        path.write_bytes(photograph(sample_scene(rng), rng))
        found.append(Example(path.name, "", "abc"[n % 3], path.name, path))
    return build_dataset("overhead", found, classes=[])


def fifths(data: ClassificationDataset) -> list[ClassificationDataset]:
    size = len(data.examples) // ROUNDS
    places = [slice(at * size, (at + 1) * size) for at in range(ROUNDS)]
    return [
        ClassificationDataset(data.name, data.classes, data.examples[at], data.labels_N[at], data.generated_split, data.fingerprint)
        for at in places
    ]


@torch.inference_mode()
def bare(vision: Vision, blocks: list[torch.Tensor]) -> None:
    for x_N3HW in blocks:
        vision.encode(vision.normalise(x_N3HW))
