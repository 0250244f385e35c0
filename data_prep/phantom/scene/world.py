"""The factors of phantom images and their values.

A `Scene` holds the factors of one image. Pixels, captions, questions and answers follow from it, so that every answer is known to be
right. Factors are drawn independently and nearly uniformly, so that no answer predicts another.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL = "no abnormality"
MAX_COUNT = 4


@dataclass(frozen=True)
class Finding:
    """`shape` is its shape in draw/marks.py. Findings of one modality have the same colour, brightness and area."""

    plural: str
    shape: str


@dataclass(frozen=True)
class Modality:
    """`organs` maps each organ to its planes; `stains` are those of the preparation. A plane or stain may be an empty string."""

    display_name: str
    organs: dict[str, tuple[str, ...]]
    findings: dict[str, Finding]
    stains: tuple[str, ...] = ("",)


# All modalities share one vocabulary, so that learning transfers between them. Each shows three of the four findings.
NODULE, CYST = {"nodule": Finding("nodules", "disc")}, {"cyst": Finding("cysts", "ring")}
CLUSTER, STREAK = {"cluster": Finding("clusters", "specks")}, {"streak": Finding("streaks", "rod")}

RADIOLOGY = {
    "xray": Modality("x-ray", {"chest": ("frontal", "lateral")}, NODULE | CLUSTER | STREAK),
    "ct": Modality("ct", {"head": ("axial", "coronal"), "abdomen": ("axial", "coronal")}, NODULE | CYST | CLUSTER),
    "mri": Modality("mri", {"brain": ("axial", "sagittal", "coronal"), "knee": ("sagittal", "coronal")}, NODULE | CYST | STREAK),
    "ultrasound": Modality("ultrasound", {"liver": ("",), "thyroid": ("",)}, CYST | CLUSTER | STREAK),
}
OPTICAL = {
    "fundus": Modality("fundus photography", {"eye": ("",)}, NODULE | CYST | CLUSTER),
    "dermoscopy": Modality("dermoscopy", {"skin": ("",)}, NODULE | CLUSTER | STREAK),
    "histology": Modality("histology", {"liver": ("",), "muscle": ("",)}, CYST | CLUSTER | STREAK, ("hematoxylin and eosin", "trichrome")),
    "fluorescence": Modality(
        "fluorescence microscopy", {"kidney": ("",), "cornea": ("",)}, NODULE | CYST | STREAK, ("dapi", "fitc", "rhodamine")
    ),
    "smear": Modality("blood smear", {"blood": ("",)}, NODULE | CYST | CLUSTER, ("giemsa", "wright")),
}
MODALITIES = RADIOLOGY | OPTICAL


@dataclass(frozen=True)
class Scene:
    """The factors of one image. A normal scene has count 0 and empty side and size.

    `side` is left or right in image coordinates. `grain` (0 fine to 2 coarse texture) and `margin` (outline of a breast mass) occur in
    no caption or question, because they are the classes of classification sets that training must not have seen.
    """

    modality: str
    organ: str
    plane: str
    finding: str
    count: int
    side: str
    size: str
    stain: str
    grain: int
    margin: str = ""

    @property
    def normal(self) -> bool:
        return self.finding == NORMAL

    @property
    def shape(self) -> str:
        if self.margin:
            return "spiculated" if self.margin == "spiculated" else "disc"
        return MODALITIES[self.modality].findings[self.finding].shape


def item_rng(seed: int, dataset: str, split: str, item: int) -> np.random.Generator:
    """The generator of one item, a pure function of the arguments. It is the only source of randomness."""
    return np.random.default_rng([seed, zlib.crc32(dataset.encode()), zlib.crc32(split.encode()), item])


def pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator, *, modalities: Sequence[str] = tuple(MODALITIES)) -> Scene:
    """A scene of one of `modalities`. Its findings and `no abnormality` are equally likely."""
    modality = pick(rng, modalities)
    kind = MODALITIES[modality]
    organ = pick(rng, tuple(kind.organs))
    finding = pick(rng, (*kind.findings, NORMAL))
    count, side, size = int(rng.integers(1, MAX_COUNT + 1)), pick(rng, ("left", "right")), pick(rng, ("small", "large"))
    if finding == NORMAL:
        count, side, size = 0, "", ""
    return Scene(
        modality=modality,
        organ=organ,
        plane=pick(rng, kind.organs[organ]),
        finding=finding,
        count=count,
        side=side,
        size=size,
        stain=pick(rng, kind.stains),
        grain=int(rng.integers(3)),
    )
