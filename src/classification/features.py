"""Pooled features of a whole classification set, computed once per encoder and cached.

Legend: N images, 3HW channels and pixels, F width of a pooled feature.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch

from src.classification.dataset import ClassificationDataset, image_batches
from src.model.vision import Vision
from src.runtime.atomic_file import atomic_path
from src.runtime.progress import Progress


def cached_arrays(path: Path, origin: dict, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in `path` if they were computed from `origin`; otherwise those of `compute()`, which are then stored there."""
    key = json.dumps(origin, sort_keys=True)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("origin") == key:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except (FileNotFoundError, safetensors.SafetensorError):
        pass
    arrays = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        safetensors.numpy.save_file(arrays, partial, metadata={"origin": key})
    return arrays


@torch.inference_mode()
def extract_features(
    vision: Vision, data: ClassificationDataset, *, device: torch.device, batch: int, threads: int
) -> dict[str, np.ndarray]:
    """Features f_NF of each pooling, in the order of `data.examples`, from one pass in float32 on any device."""
    vision = vision.to(device)
    features: dict[str, list[np.ndarray]] = {}
    with Progress(total=len(data.examples), desc=f"{data.name}: features", unit="image", leave=False) as progress:
        for x_N3HW in image_batches(data, np.arange(len(data.examples)), size=vision.size, batch=batch, threads=threads):
            for pooling, f_NF in vision.features(x_N3HW.to(device, non_blocking=True)).items():
                features.setdefault(pooling, []).append(f_NF.float().cpu().numpy())
            progress.update(len(x_N3HW))
    return {pooling: np.concatenate(parts) for pooling, parts in features.items()}
