"""Coordinates, soft masks and smooth noise, with which every phantom is drawn.

Shapes: x_HW, y_HW are isotropic coordinates with the origin in the middle; the half side of a square image is 1, so one
pixel of the model's 64 x 64 view is 1/32. Distances d are negative inside.
"""

from functools import lru_cache

import numpy as np


class Canvas:
    """The coordinate grid of one image size. Grids are shared and read-only."""

    def __init__(self, height: int, width: int):
        self.shape = (height, width)
        self.scale = (height * width) ** 0.5 / 2  # pixels per unit
        self.half = (width / 2 / self.scale, height / 2 / self.scale)  # extent of x and of y
        x_W = ((np.arange(width) + 0.5 - width / 2) / self.scale).astype(np.float32)
        y_H = ((np.arange(height) + 0.5 - height / 2) / self.scale).astype(np.float32)
        self.x_HW, self.y_HW = (np.ascontiguousarray(grid) for grid in np.meshgrid(x_W, y_H))
        self.x_HW.flags.writeable = self.y_HW.flags.writeable = False

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
        """Approximate signed distance to an ellipse."""
        dx_HW, dy_HW = self.x_HW - np.float32(cx), self.y_HW - np.float32(cy)
        if angle:
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            dx_HW, dy_HW = c * dx_HW + s * dy_HW, c * dy_HW - s * dx_HW
        return (np.sqrt((dx_HW / np.float32(rx)) ** 2 + (dy_HW / np.float32(ry)) ** 2) - 1) * np.float32(min(rx, ry))

    def soft(self, d_HW: np.ndarray, edge: float = 0.0) -> np.ndarray:
        """1 inside, 0 outside, with an edge of the given width (at least one pixel)."""
        return np.clip(0.5 - d_HW / np.float32(max(edge, 1 / self.scale)), 0, 1)

    def noise(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Smooth noise of about unit variance with `cells` bumps along each side."""
        height, width = self.shape
        g_NN = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
        return (_spline(height, cells) @ g_NN) @ _spline(width, cells).T

    def grain(self, rng: np.random.Generator, blur: int = 1) -> np.ndarray:
        """Pixel noise of unit variance. With `blur` 2 its grain is two pixels wide."""
        height, width = self.shape
        if blur == 1:
            return rng.standard_normal(self.shape, dtype=np.float32)
        coarse = rng.standard_normal((height // 2 + 1, width // 2 + 1), dtype=np.float32)
        return coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]

    def cells(self, rng: np.random.Generator, across: float, jitter: float, angle: float = 0.0, stretch: float = 1.0):
        """A jittered lattice with one object per cell: distance of each pixel to the object of its cell, and the number of the object.

        Distance is in units of half a cell; objects of radius up to `1 - jitter` do not touch. `stretch` > 1 elongates them.
        """
        pitch = np.float32(2 / across)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u_HW = (c * self.x_HW + s * self.y_HW) / (pitch * np.float32(stretch)) + 16
        v_HW = (c * self.y_HW - s * self.x_HW) / pitch + np.float32(16.37)
        i_HW, j_HW = u_HW.astype(np.int32), v_HW.astype(np.int32)
        number_HW = i_HW * 64 + j_HW
        offset = (rng.random((2, 4096), dtype=np.float32) - 0.5) * np.float32(jitter)
        du_HW = u_HW - i_HW - np.float32(0.5) - offset[0][number_HW]
        dv_HW = v_HW - j_HW - np.float32(0.5) - offset[1][number_HW]
        return 2 * np.sqrt(du_HW**2 + dv_HW**2), number_HW


@lru_cache(maxsize=64)
def canvas(height: int, width: int) -> Canvas:
    return Canvas(height, width)


@lru_cache(maxsize=256)
def _spline(pixels: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights (pixels, cells + 3), scaled so that unit-variance knots give about unit variance."""
    t = (np.arange(pixels) + 0.5) / pixels * cells
    left, f = t.astype(int), t % 1
    weights = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3]) / 6
    out = np.zeros((pixels, cells + 3), np.float32)
    for k in range(4):
        out[np.arange(pixels), left + k] = weights[k]
    return out / np.float32((out**2).sum(1).mean() ** 0.5)


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)


def blend(rgb_HW3: np.ndarray, colour, mask_HW: np.ndarray) -> None:
    """Blends `colour` into `rgb_HW3` in place, with the opacity `mask_HW`."""
    rgb_HW3 += mask_HW[..., None] * (np.asarray(colour, np.float32) - rgb_HW3)
