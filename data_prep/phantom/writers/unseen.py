"""Shared by the writers of classification sets. Their labels are shapes, textures or positions that no caption, question or answer of the
mix names, because a transfer benchmark must be unseen."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.phantom import draw
from data_prep.phantom.scene.world import Scene, pick
from data_prep.phantom.writers.folder import scenes

SIDE = 96  # pixels of a MedMNIST phantom
SHAPES = ("ring", "crescent", "star", "spiculated", "square")  # no X-ray and no skin image of the mix has these


@dataclass(frozen=True)
class Look:
    """How one class is drawn. Factors that are not given are random. An empty `shape` means no finding."""

    shape: str = ""
    count: int = 1
    side: str = ""
    size: str = "large"
    grain: int | None = None


MULTILABEL_LOOKS = [Look(shape, 1, side, size) for size in ("large", "small") for side in ("left", "right") for shape in SHAPES]


def labelled_scenes(
    seed: int, dataset: str, split: str, number: int, modality: str, weights: list[int]
) -> Iterator[tuple[int, Scene, np.random.Generator]]:
    """(class number, scene, generator). The classes have the frequencies `weights`, in a fixed mixed order."""
    classes = np.repeat(np.arange(len(weights)), weights)
    for n, (scene, rng) in enumerate(scenes(seed, dataset, split, number, (modality,))):
        yield int(classes[n * 7919 % len(classes)]), scene, rng


def multilabel_scenes(
    seed: int, dataset: str, split: str, number: int, modality: str, weights: list[int]
) -> Iterator[tuple[list[int], Scene, np.random.Generator]]:
    """(numbers of the positive classes, scene, generator). A quarter of the images have none, the others one to three."""
    for label, scene, rng in labelled_scenes(seed, dataset, split, number, modality, weights):
        more = np.flatnonzero(rng.random(len(weights)) < 1 / len(weights))[:2].tolist()
        yield sorted({label, *more}) if rng.random() < 0.75 else [], scene, rng


def draw_class(look: Look, scene: Scene, rng: np.random.Generator, *, sides: tuple[int, ...]) -> np.ndarray:
    """The background of a scene with the findings of one class."""
    scene = scene if look.grain is None else replace(scene, grain=look.grain)
    return draw_classes([look] if look.shape else [], scene, rng, sides=sides)


def draw_classes(looks: list[Look], scene: Scene, rng: np.random.Generator, *, sides: tuple[int, ...]) -> np.ndarray:
    """The background of a scene with the findings of several classes."""
    findings = [draw.Findings(look.shape, look.count, look.side or scene.side or pick(rng, ("left", "right")), look.size) for look in looks]
    return draw.render(scene, rng, sides=sides, findings=findings)


def write_npz(
    out: Path, flag: str, looks: list[Look], *, modality: str, weights: list[int], grey: bool, seed: int, num: dict[str, int]
) -> None:
    """Writes `{flag}_224.npz` as MedMNIST has it: images (N, H, W) or (N, H, W, 3), labels (N, 1)."""
    arrays: dict[str, np.ndarray] = {}
    known = {"oct": "fundus"}.get(modality, modality)  # `sample_scene` knows no OCT: the scene is that of a fundus
    for split, number in num.items():
        images, labels = [], []
        for label, scene, rng in labelled_scenes(seed, flag, split, number, known, weights):
            pixels = draw_class(looks[label], replace(scene, modality=modality), rng, sides=(128,))
            images.append(np.asarray(Image.fromarray(pixels[..., 0] if grey else pixels).resize((SIDE, SIDE))))
            labels.append([label])
        arrays |= {f"{split}_images": np.stack(images), f"{split}_labels": np.array(labels, np.uint8)}
    np.savez_compressed(out / f"{flag}_224.npz", **arrays)  # type: ignore[arg-type]  # its stub takes names for the option
