"""The phantom world: what can be seen in an image, before it is drawn or put into words.

A `Scene` is a handful of known factors. Everything else (pixels, captions, questions, answers) follows from it, so
that every answer is known to be right. Draws are independent and near uniform: no answer can be guessed from another.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL = "no abnormality"
MAX_COUNT = 4


@dataclass(frozen=True)
class Finding:
    """`shape` is how it is drawn (draw/marks.py): findings of one modality share colour, brightness and area."""

    plural: str
    shape: str


@dataclass(frozen=True)
class Modality:
    """`organs` maps each organ to its planes, `stains` are colours of the preparation; both may be empty strings."""

    display_name: str
    organs: dict[str, tuple[str, ...]]
    findings: dict[str, Finding]
    stains: tuple[str, ...] = ("",)


# One vocabulary for all techniques, so that what is learnt on one carries over; each technique shows three of the four.
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

    `side` is left or right in image coordinates. `grain` (0 fine to 2 coarse texture) and `margin` (outline of a breast
    mass) are never put into words by captions and questions: they are what unseen classification sets ask for.
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
    """The only source of randomness of one item: a pure function of these four."""
    return np.random.default_rng([seed, zlib.crc32(dataset.encode()), zlib.crc32(split.encode()), item])


def pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator, *, modalities: Sequence[str] = tuple(MODALITIES)) -> Scene:
    """A scene of one of `modalities`; its findings and `no abnormality` are equally likely."""
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
