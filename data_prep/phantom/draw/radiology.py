"""Backgrounds of X-ray, CT, MRI and ultrasound: grey images with the outline of an anatomy."""

import numpy as np

from data_prep.phantom.draw.canvas import Canvas, ramp
from data_prep.phantom.draw.ground import Ground
from data_prep.phantom.scene.world import Scene


def xray(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """Dark lungs with bright ribs, spine and heart. The lateral view has one lung field with the spine behind it."""
    frontal, shift = scene.plane == "frontal", rng.uniform(-0.06, 0.06)
    g_HW = 0.52 - 0.12 * np.abs(c.x_HW) + 0.03 * c.noise(rng, 5)
    if frontal:
        for cx in (-0.44, 0.44):
            g_HW -= 0.30 * c.soft(c.ellipse(cx + shift, 0.0, 0.40, 0.80, 0.06 * np.sign(cx)), 0.12)
        g_HW += 0.12 * c.soft(np.abs(c.x_HW - np.float32(shift)) - 0.10, 0.08)
        g_HW += 0.10 * c.soft(c.ellipse(shift + 0.14, 0.36, 0.26, 0.30), 0.12)
    else:
        g_HW -= 0.30 * c.soft(c.ellipse(shift, -0.05, 0.80, 0.80), 0.15)
        g_HW += 0.20 * c.soft(np.abs(c.x_HW - np.float32(0.92 + shift) + 0.12 * c.y_HW**2) - 0.09, 0.06)
    bow = (0.16 if frontal else -0.10) * (np.abs(c.x_HW) if frontal else c.x_HW) ** 2
    g_HW += 0.05 * c.soft(np.abs(np.sin((c.y_HW - bow) * np.float32(11.5) + rng.uniform(0, 6))) - 0.32, 0.3)
    return Ground.grey(g_HW + 0.025 * c.grain(rng), ink=0.97, allowed=_ellipse(0.86, 0.80))


def ct(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """A skull as a bright ring, or an abdomen with organs and a spine, in air."""
    g_HW, tall = np.full(c.shape, 0.03, np.float32), 0.90 if scene.plane == "coronal" else 0.80
    if scene.organ == "head":
        outer = c.ellipse(0, 0, 0.88, 0.94 if scene.plane == "axial" else 0.84)
        g_HW += 0.66 * c.soft(outer) - 0.32 * c.soft(outer + 0.09)
        for sign in (-1, 1):
            g_HW -= 0.12 * c.soft(c.ellipse(sign * 0.13, -0.08, 0.07, 0.26, sign * 0.3), 0.05)
        g_HW += c.soft(outer + 0.09) * 0.02 * c.noise(rng, 14)
    else:
        outer = c.ellipse(0, 0, 0.94, tall)
        g_HW += 0.30 * c.soft(outer) + 0.10 * c.soft(outer + 0.10, 0.04)
        g_HW += 0.10 * c.soft(c.ellipse(-0.45, -0.10, 0.38, 0.50) + 0.04 * c.noise(rng, 5), 0.06)
        spine = c.ellipse(0, 0.62, 0.13, 0.11) if scene.plane == "axial" else np.abs(c.x_HW) - 0.07
        g_HW += 0.25 * c.soft(np.maximum(spine, outer + 0.1), 0.03)
        g_HW += c.soft(outer) * 0.025 * c.noise(rng, 10)
    return Ground.grey(g_HW + 0.03 * c.grain(rng), ink=0.97, allowed=_ellipse(0.74, 0.74))


def mri(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """A folded cortex around ventricles, or the two bones of a knee, on a dark background."""
    if scene.organ == "brain":
        rx, ry = {"axial": (0.76, 0.92), "sagittal": (0.92, 0.74), "coronal": (0.86, 0.78)}[scene.plane]
        brain = c.ellipse(0, 0, rx, ry)
        folds = c.noise(rng, 11)
        g_HW = 0.04 + 0.40 * c.soft(brain, 0.04) + 0.07 * c.soft(brain) * ramp(np.abs(folds), 0.1, 0.5)
        g_HW += 0.20 * c.soft(np.abs(brain - 0.06) - 0.025, 0.03)
        if scene.plane == "sagittal":
            g_HW -= 0.26 * c.soft(np.abs(c.ellipse(0, 0.05, 0.32, 0.16)) - 0.03, 0.04) * (c.y_HW < 0.08)
        else:
            for sign in (-1, 1):
                g_HW -= 0.28 * c.soft(c.ellipse(sign * 0.11, -0.03, 0.06, 0.22, -sign * 0.25), 0.04)
    else:
        gap = 0.06 * np.sin(c.x_HW * 3 + rng.uniform(-0.5, 0.5)).astype(np.float32)
        width = 0.70 if scene.plane == "coronal" else 0.56
        bone = np.abs(c.x_HW) - width - 0.22 * np.exp(-((c.y_HW * 4) ** 2))
        g_HW = 0.14 + 0.10 * c.soft(np.abs(c.x_HW) - 0.92, 0.05)
        g_HW += 0.34 * c.soft(np.maximum(bone, 0.07 - np.abs(c.y_HW - gap)), 0.05) + 0.03 * c.noise(rng, 9)
    return Ground.grey(g_HW + 0.02 * c.grain(rng), ink=0.97, allowed=_ellipse(0.70, 0.72))


def ultrasound(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    """A fan of coarse speckle on black, with layers under the probe."""
    depth = np.hypot(c.x_HW, c.y_HW + np.float32(1.9))
    angle = np.arctan2(c.x_HW, c.y_HW + np.float32(1.9))
    fan = c.soft(np.maximum(np.abs(angle) - 0.52, np.abs(depth - 1.88) - 0.94), 0.03)
    tissue = 0.34 + 0.05 * c.noise(rng, 4) + (0.08 if scene.organ == "liver" else 0.0)
    if scene.organ == "thyroid":
        tissue = tissue + 0.10 * c.soft(np.abs(c.x_HW) - 0.10, 0.06) - 0.06 * c.soft(np.abs(c.y_HW + 0.55) - 0.05, 0.04)
    layers = 0.12 * c.soft(np.abs(np.sin(depth * 17)) - 0.5, 0.4) * ramp(depth, 1.35, 1.0)
    speckle = 1 + 0.18 * c.grain(rng, 2) + 0.08 * c.grain(rng)
    return Ground.grey(
        fan * (tissue + layers) * speckle + 0.02, ink=0.97, allowed=lambda x, y: abs(x) < 0.57 * (y + 1.9) - 0.24 and -0.68 < y < 0.70
    )


def _ellipse(rx: float, ry: float):
    return lambda x, y: (x / rx) ** 2 + (y / ry) ** 2 < 1
