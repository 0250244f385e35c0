"""Optical coherence tomography of the retina: bright layers over a dark choroid. No source of the mix has this modality."""

import numpy as np

from data_prep.phantom.draw.canvas import Canvas, ramp
from data_prep.phantom.draw.ground import Ground
from data_prep.phantom.scene.world import Scene


def oct(scene: Scene, rng: np.random.Generator, c: Canvas) -> Ground:
    tilt, dip = rng.uniform(-0.15, 0.15), rng.uniform(0.08, 0.22)
    surface = -0.32 + tilt * c.x_HW + dip * np.exp(-((c.x_HW / np.float32(0.22)) ** 2))  # the dip is the fovea
    depth = c.y_HW - surface
    g_HW = 0.06 + 0.34 * c.soft(np.abs(depth - 0.34) - 0.34, 0.04)
    g_HW += 0.14 * c.soft(np.abs(np.sin(depth * 15 + rng.uniform(0, 1))) - 0.4, 0.4) * ramp(depth, 0.02, 0.1) * ramp(depth, 0.66, 0.58)
    g_HW += 0.40 * c.soft(np.abs(depth - 0.66) - 0.035, 0.03)
    g_HW += 0.10 * ramp(depth, 0.68, 0.72) * ramp(depth, 1.2, 0.8) * (1 + 0.4 * c.noise(rng, 12))
    return Ground.grey(
        g_HW * (1 + 0.18 * c.grain(rng, 2)) + 0.02 * c.grain(rng), ink=0.90, allowed=lambda x, y: abs(x) < 0.8 and -0.15 < y < 0.5
    )
