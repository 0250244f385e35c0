"""Shapes and positions of findings.

All shapes cover about the same area with the same opacity, so that they differ in outline and texture, not in mean brightness or
colour.
"""

from collections.abc import Callable

import numpy as np

from data_prep.phantom.draw.canvas import Canvas

RADIUS = {"small": 0.13, "large": 0.175}  # units: 4.2 and 5.6 pixels of 64


def stamp(shape: str, rng: np.random.Generator, u: np.ndarray, v: np.ndarray, angle: float) -> np.ndarray:
    """Signed distance to one finding. `u` and `v` are in units of its radius."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * u + s * v, c * v - s * u
    r = np.sqrt(u * u + v * v)
    if shape == "disc":
        return r - 0.78
    if shape == "ring":
        return np.abs(r - 0.81) - 0.19
    if shape == "rod":
        return np.hypot(np.maximum(np.abs(u) - 1.0, 0), v) - 0.33
    if shape == "crescent":
        return np.maximum(r - 1.0, 0.78 - np.hypot(u - 0.45, v))
    if shape == "star":
        return r - (0.72 + 0.42 * np.cos(5 * np.arctan2(v, u)))
    if shape == "spiculated":
        return r - (0.66 + 0.3 * np.cos(9 * np.arctan2(v, u)) + 0.1 * np.cos(4 * np.arctan2(v, u) + rng.uniform(0, 6)))
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.72
    turn = rng.uniform(0, 6.3)
    centres = [(0.0, 0.0)] + [(0.82 * np.cos(turn + k * 1.2566), 0.82 * np.sin(turn + k * 1.2566)) for k in range(5)]
    return np.minimum.reduce([np.hypot(u - np.float32(a), v - np.float32(b)) for a, b in centres]) - 0.31


def place(rng: np.random.Generator, c: Canvas, count: int, side: str, radius: float, allowed: Callable) -> list[tuple[float, float]]:
    """`count` centres on one side of the image, inside `allowed(x, y)`, that do not touch."""
    (width, height), sign = c.half, -1 if side == "left" else 1
    margin = 1.1 * radius
    x = sign * rng.uniform(max(margin, 0.22), width - margin, 200)
    y = rng.uniform(-height + margin, height - margin, 200)
    points = np.array([point for point in zip(x, y, strict=True) if allowed(*point)])
    for gap in np.linspace(2.6, 1.8, 50) * radius:
        left = points[rng.permutation(len(points))]
        chosen: list = []
        while len(left) and len(chosen) < count:
            chosen.append((float(left[0, 0]), float(left[0, 1])))
            left = left[np.hypot(*(left - left[0]).T) > gap]
        if len(chosen) == count:
            return chosen
    raise AssertionError(f"no room for {count} findings of radius {radius}")


def finding_mask(
    rng: np.random.Generator, c: Canvas, shape: str, centres: list[tuple[float, float]], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """(mask of the findings, mask of the background that is faded around them), both (H, W) in 0..1."""
    mask_HW, clear_HW = np.zeros(c.shape, np.float32), np.zeros(c.shape, np.float32)
    reach, edge = 1.6 * radius, max(0.10, 1 / (c.scale * radius))
    for x, y in centres:
        size = radius * rng.uniform(0.94, 1.06)
        rows = _window(y, reach, c.half[1], c.scale, c.shape[0])
        cols = _window(x, reach, c.half[0], c.scale, c.shape[1])
        u, v = (c.x_HW[rows, cols] - np.float32(x)) / np.float32(size), (c.y_HW[rows, cols] - np.float32(y)) / np.float32(size)
        d = stamp(shape, rng, u, v, rng.uniform(0, np.pi))
        np.maximum(mask_HW[rows, cols], np.clip(0.5 - d / np.float32(edge), 0, 1), out=mask_HW[rows, cols])
        np.maximum(clear_HW[rows, cols], np.clip((np.float32(1.5) - np.hypot(u, v)) / np.float32(0.35), 0, 1), out=clear_HW[rows, cols])
    return mask_HW, clear_HW


def _window(at: float, reach: float, half: float, scale: float, pixels: int) -> slice:
    return slice(max(0, int((at - reach + half) * scale)), min(pixels, int((at + reach + half) * scale) + 2))
