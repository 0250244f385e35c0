"""Renders a scene: background, distractors, findings, and random exposure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.phantom.draw import optical, radiology
from data_prep.phantom.draw.canvas import Canvas, blend, canvas
from data_prep.phantom.draw.ground import Ground
from data_prep.phantom.draw.marks import RADIUS, finding_mask, place
from data_prep.phantom.draw.oct import oct
from data_prep.phantom.scene.world import Scene

GROUNDS = {
    "xray": radiology.xray,
    "ct": radiology.ct,
    "mri": radiology.mri,
    "ultrasound": radiology.ultrasound,
    "fundus": optical.fundus,
    "dermoscopy": optical.dermoscopy,
    "histology": optical.histology,
    "fluorescence": optical.fluorescence,
    "smear": optical.smear,
    "oct": oct,
}
SIDES = (96, 112, 128, 144, 160, 192)  # pixels


class Findings(NamedTuple):
    """`number` findings of the same shape on one side of the image."""

    shape: str
    number: int
    side: str
    size: str


def render(
    scene: Scene, rng: np.random.Generator, *, sides: tuple[int, ...] = SIDES, findings: Sequence[Findings] | None = None
) -> np.ndarray:
    """The image (H, W, 3) in uint8. Height and width are drawn from `sides` and differ by at most a third.

    `findings` replace those of the scene. They may have shapes that no finding of `world.py` has.
    """
    height = int(rng.choice(sides))
    width = int(rng.choice([side for side in sides if 3 / 4 <= side / height <= 4 / 3]))
    c = canvas(height, width)
    ground = GROUNDS[scene.modality](scene, rng, c)
    if findings is None:
        findings = [] if scene.normal else [Findings(scene.shape, scene.count, scene.side, scene.size)]
    masks = []
    for side in dict.fromkeys(one.side for one in findings):
        here = [one for one in findings if one.side == side]
        centres = place(rng, c, sum(one.number for one in here), side, max(RADIUS[one.size] for one in here), ground.allowed)
        for one in here:
            masks.append(finding_mask(rng, c, one.shape, centres[: one.number], RADIUS[one.size]))
            centres = centres[one.number :]
    distractors(ground, rng, c)
    for mask_HW, clear_HW in masks:
        calm = ground.rgb_HW3.reshape(-1, 3).mean(0) * 0.5 + ground.rgb_HW3 * 0.5
        ground.rgb_HW3 += (0.85 * clear_HW)[..., None] * (calm - ground.rgb_HW3)
        blend(ground.rgb_HW3, ground.ink, 0.9 * mask_HW)
    return adjust_exposure(ground.rgb_HW3, rng, grey=scene.modality in ("xray", "ct", "mri", "ultrasound", "oct"))


def distractors(ground: Ground, rng: np.random.Generator, c: Canvas) -> None:
    """Draws marks in the colour of the findings that are none: thin crosses, a corner label, ruler ticks at an edge, a scratch."""
    (width, height), ink = c.half, ground.ink
    for _ in range(rng.integers(0, 3)):
        x, y = rng.uniform(-0.9, 0.9) * width, rng.uniform(-0.9, 0.9) * height
        dx, dy = np.abs(c.x_HW - np.float32(x)), np.abs(c.y_HW - np.float32(y))
        cross = np.minimum(np.maximum(dx - 0.08, dy - 0.012), np.maximum(dy - 0.08, dx - 0.012))
        blend(ground.rgb_HW3, ink, 0.8 * c.soft(cross))
    sign = rng.choice((-1, 1))
    if rng.random() < 0.3:
        edge, along = (c.x_HW * sign + width, c.y_HW) if rng.random() < 0.5 else (c.y_HW * sign + height, c.x_HW)
        ticks = np.maximum(edge - 0.09, np.abs((along * 6) % 1 - 0.5) / 6 - 0.012)
        blend(ground.rgb_HW3, ink, 0.9 * c.soft(ticks))
    if rng.random() < 0.3:
        x, y = rng.choice((-1, 1)) * (width - 0.12), rng.choice((-1, 1)) * (height - 0.06)
        box = np.maximum(np.abs(c.x_HW - np.float32(x)) - 0.09, np.abs(c.y_HW - np.float32(y)) - 0.025)
        blend(ground.rgb_HW3, ink, 0.9 * c.soft(box))
    if rng.random() < 0.2:
        a, off = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8)
        line = np.abs(np.float32(np.cos(a)) * c.y_HW - np.float32(np.sin(a)) * c.x_HW - np.float32(off)) - 0.009
        blend(ground.rgb_HW3, ink, 0.7 * c.soft(line))


def adjust_exposure(rgb_HW3: np.ndarray, rng: np.random.Generator, *, grey: bool) -> np.ndarray:
    """Applies a random exposure and contrast, and a random tint unless `grey`, so that brightness and hue are not informative."""
    gamma, gain, lift = rng.uniform(0.8, 1.25), rng.uniform(0.82, 1.0), rng.uniform(0, 0.06)
    tint = np.ones(3) if grey else rng.uniform(0.92, 1.0, 3)
    out = lift + gain * np.clip(rgb_HW3, 0, 1) ** np.float32(gamma) * tint.astype(np.float32)
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)
