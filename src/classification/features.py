"""Pooled features of a whole classification set, computed once per encoder and kept.

Legend: N images, 3HW channels and pixels, F width of a pooled feature.
"""

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch

from src.classification.dataset import ClassificationDataset, image_batches
from src.model.vision import Vision
from src.runtime.atomic_file import atomic_path
from src.runtime.progress import Progress


def cached_arrays(path: Path, origin: dict, make) -> dict[str, np.ndarray]:
    """The arrays in `path` if they stem from `origin`, else those that `make` gives, which are then kept there."""
    said = json.dumps(origin, sort_keys=True)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("origin") == said:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (FileNotFoundError, safetensors.SafetensorError):
        pass
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        safetensors.numpy.save_file(made, partial, metadata={"origin": said})
    return made


@torch.inference_mode()
def extract_features(
    vision: Vision, data: ClassificationDataset, *, device: torch.device, batch: int, threads: int
) -> dict[str, np.ndarray]:
    """f_NF float32 of every pooling, in the order of `data.examples`, from one pass in float32 whatever the device."""
    vision = vision.to(device)
    found: dict[str, list[np.ndarray]] = {}
    with Progress(total=len(data.examples), desc=f"{data.name}: features", unit="image", leave=False) as progress:
        for x_N3HW in image_batches(data, np.arange(len(data.examples)), size=vision.size, batch=batch, threads=threads):
            for how, f_NF in vision.features(x_N3HW.to(device, non_blocking=True)).items():
                found.setdefault(how, []).append(f_NF.float().cpu().numpy())
            progress.update(len(x_N3HW))
    return {how: np.concatenate(parts) for how, parts in found.items()}
