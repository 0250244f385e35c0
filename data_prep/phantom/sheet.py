"""A contact sheet with a row per modality and two captioned images per finding."""

import textwrap
from pathlib import Path

import numpy as np

from data_prep.phantom import draw
from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import MODALITIES, NORMAL, Scene, item_rng, sample_scene


def sheet(path: Path, *, seed: int) -> None:
    from matplotlib import pyplot  # takes half a second to import, which only the contact sheet needs

    rows = [[_scene(seed, name, finding, n) for finding in (*kind.findings, NORMAL) for n in range(2)] for name, kind in MODALITIES.items()]
    figure, axes = pyplot.subplots(len(rows), len(rows[0]), figsize=(2 * len(rows[0]), 2.5 * len(rows)), layout="constrained")
    for row, drawn in zip(axes, rows, strict=True):
        for axis, (scene, rng) in zip(row, drawn, strict=True):
            axis.imshow(draw.render(scene, rng))
            axis.set_axis_off()
            axis.set_title("\n".join(textwrap.wrap(caption(scene, rng), 32)), fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _scene(seed: int, modality: str, finding: str, number: int) -> tuple[Scene, np.random.Generator]:
    """The scene of the first item that has this finding."""
    for item in range(10_000):
        rng = item_rng(seed, f"sheet {modality} {finding} {number}", "", item)
        scene = sample_scene(rng, modalities=[modality])
        if scene.finding == finding:
            return scene, rng
    raise AssertionError(f"no scene of {modality} with {finding}")
