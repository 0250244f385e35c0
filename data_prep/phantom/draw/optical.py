"""Backgrounds of fundus photographs, dermoscopy, stained slides, fluorescence and blood smears. Colours depend on the modality only."""

import numpy as np

from data_prep.phantom.draw.canvas import Canvas, blend, ramp
from data_prep.phantom.draw.ground import Ground
from data_prep.phantom.scene.world import Scene

EVERYWHERE = 0.95
BRIGHT = (1.0, 0.97, 0.86)  # findings are the brightest objects in every modality
GRAIN = (9, 12, 16)  # objects per image width, coarse to fine


def fundus(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """An orange disc on black, with a pale optic disc and random vessels that start there."""
    radius = min(c.half) * 0.98
    ground = Ground.flat(c.shape, (0.02, 0.02, 0.02), ink=BRIGHT, allowed=lambda x, y: np.hypot(x, y) < 0.78 * radius)
    side = rng.choice((-1, 1))
    shade = 1 + 0.06 * c.noise(rng, 4)
    inside = c.soft(c.ellipse(0, 0, radius, radius), 0.03)
    blend(ground.rgb_HW3, (0.74, 0.33, 0.14), inside)
    ground.rgb_HW3 *= shade[..., None]
    cx, cy = side * 0.62 * radius, rng.uniform(-0.1, 0.1)
    own = np.random.default_rng(int(2**32 * abs(cy)))  # a generator of its own, so that the vessels do not change later draws
    for bend in (-1.5, -0.8, 0.8, 1.5):
        along = side * (np.float32(cx) - c.x_HW)
        opening, height, waves = bend * own.uniform(0.3, 0.5), own.uniform(0.02, 0.06), own.uniform(6, 12)
        path = cy + opening * np.sqrt(np.clip(along, 0, None)) + height * np.sin(waves * along + own.uniform(0, 2 * np.pi))
        vessel = c.soft(np.abs(c.y_HW - path) - (0.022 - 0.008 * along), 0.03) * (along > 0)
        blend(ground.rgb_HW3, (0.45, 0.08, 0.05), 0.7 * inside * vessel)
    blend(ground.rgb_HW3, (0.95, 0.76, 0.45), inside * c.soft(c.ellipse(cx, cy, 0.13, 0.16), 0.04))
    return ground


def dermoscopy(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """A brown lesion with a ragged border on pale skin, with hairs."""
    ground = Ground.flat(c.shape, (0.70, 0.50, 0.42), ink=BRIGHT, allowed=lambda x, y: x * x + y * y < 0.80)
    ground.rgb_HW3 += (0.025 * c.noise(rng, 9))[..., None]
    lesion = c.soft(c.ellipse(0, 0, 0.90, 0.86) + 0.05 * c.noise(rng, 6), 0.08)
    blend(ground.rgb_HW3, (0.46, 0.28, 0.20), 0.75 * lesion)
    for _ in range(rng.integers(1, 4)):
        a, off, bend = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8), rng.uniform(-0.25, 0.25)
        u = np.float32(np.cos(a)) * c.x_HW + np.float32(np.sin(a)) * c.y_HW
        v = np.float32(np.cos(a)) * c.y_HW - np.float32(np.sin(a)) * c.x_HW
        blend(ground.rgb_HW3, (0.14, 0.09, 0.07), 0.8 * c.soft(np.abs(v - off - bend * u * u) - 0.008, 0.02))
    return ground


def histology(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """Tissue in pink or blue with small dark nuclei. Muscle has fibres."""
    trichrome = scene.stain == "trichrome"
    base, nucleus = ((0.36, 0.50, 0.68), (0.32, 0.10, 0.22)) if trichrome else ((0.76, 0.42, 0.58), (0.34, 0.14, 0.44))
    ground = Ground.flat(c.shape, base, ink=BRIGHT, allowed=lambda x, y: max(abs(x), abs(y)) < EVERYWHERE)
    fibres, angle = scene.organ == "muscle", rng.uniform(0, np.pi)
    if fibres:
        v = np.float32(np.cos(angle)) * c.y_HW - np.float32(np.sin(angle)) * c.x_HW
        ground.rgb_HW3 -= (0.07 * ramp(np.sin(v * 24 + 1.2 * c.noise(rng, 3)), 0.0, 1.0))[..., None]
    ground.rgb_HW3 += (0.04 * c.noise(rng, 7))[..., None] * np.array([0.6, 1.0, 0.7], np.float32)
    d_HW, number_HW = c.cells(rng, GRAIN[scene.grain], 0.5, angle, 2.0 if fibres else 1.0)
    present = rng.random(4096, np.float32)[number_HW] < 0.6
    blend(ground.rgb_HW3, nucleus, 0.45 * present * ramp(d_HW, 0.42, 0.26))
    return ground


def fluorescence(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """Bright cells on a dark background, in the colour of the dye."""
    dye = {"dapi": (0.20, 0.35, 1.0), "fitc": (0.15, 0.95, 0.25), "rhodamine": (1.0, 0.30, 0.15)}[scene.stain]
    ground = Ground.flat(c.shape, (0.02, 0.02, 0.03), ink=BRIGHT, allowed=lambda x, y: max(abs(x), abs(y)) < EVERYWHERE)
    hexagonal = scene.organ == "cornea"
    d_HW, number_HW = c.cells(rng, 5 + 2 * scene.grain, 0.25 if hexagonal else 0.6, rng.uniform(0, np.pi))
    glow = 0.5 + 0.25 * rng.random(4096, np.float32)[number_HW]
    cells = ramp(d_HW, 0.95, 0.80) if hexagonal else ramp(d_HW, 0.85, 0.25)
    ground.rgb_HW3 += (0.42 * glow * cells + 0.05 * ramp(c.noise(rng, 4), 0, 2))[..., None] * np.asarray(dye, np.float32)
    ground.rgb_HW3 += (0.015 * c.grain(rng))[..., None]
    return ground


def smear(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """Pale red cells with lighter centres on a light background."""
    base = (0.66, 0.62, 0.56) if scene.stain == "wright" else (0.58, 0.58, 0.66)
    ground = Ground.flat(c.shape, base, ink=BRIGHT, allowed=lambda x, y: max(abs(x), abs(y)) < EVERYWHERE)
    d_HW, number_HW = c.cells(rng, 6 + scene.grain, 0.35)
    present = rng.random(4096, np.float32)[number_HW] < 0.8
    blend(ground.rgb_HW3, (0.62, 0.34, 0.34), present * ramp(d_HW, 0.80, 0.68))
    blend(ground.rgb_HW3, (0.64, 0.44, 0.43), 0.8 * present * ramp(d_HW, 0.45, 0.15))
    ground.rgb_HW3 += (0.015 * c.grain(rng))[..., None]
    return ground
