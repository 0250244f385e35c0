"""The background of an image: its pixels, where a finding may be, and the colour of findings and distractors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass
class Ground:
    rgb_HW3: np.ndarray  # float32, 0..1
    ink: tuple[float, float, float]
    allowed: Callable[[float, float], bool]  # (x, y) may be the centre of a finding

    @classmethod
    def grey(cls, g_HW: np.ndarray, *, ink: float, allowed: Callable[[float, float], bool]) -> "Ground":
        return cls(np.repeat(g_HW.astype(np.float32)[..., None], 3, axis=2), (ink, ink, ink), allowed)

    @classmethod
    def flat(cls, shape: tuple[int, int], colour, *, ink, allowed: Callable[[float, float], bool]) -> "Ground":
        return cls(np.broadcast_to(np.asarray(colour, np.float32), (*shape, 3)).copy(), ink, allowed)
