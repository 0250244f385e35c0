"""Whether two images are the same one, cropped, mirrored or encoded again."""

import io

import numpy as np
from PIL import Image

from data_prep.build.encode import HASH_SIDE, dct_hash, thumbnail

CROPS = (0.0, 0.025, 0.05)  # of each side
MIN_CORRELATION = 0.98  # of a copy; experiments/leaks measures copies and other images


def open_grey(data: bytes) -> Image.Image:
    """An encoded image as grey pixels, decoded at the smallest eighth that is not below the thumbnail's size."""
    image = Image.open(io.BytesIO(data))
    image.draft("L", (4 * HASH_SIDE, 4 * HASH_SIDE))
    return image.convert("L")


def thumbnail_variants(image: Image.Image) -> np.ndarray:
    """The image, cropped by each of `CROPS`, and the mirror image of each: float x_VHW, grey thumbnails of 32 x 32."""
    width, height = image.size
    boxes = [(width * crop, height * crop, width * (1 - crop), height * (1 - crop)) for crop in CROPS]
    grey = image.convert("L")
    upright = np.stack([thumbnail(grey, box) for box in boxes])
    return np.concatenate([upright, upright[..., ::-1]])


def variant_hashes(x_VHW: np.ndarray) -> np.ndarray:
    return np.array([dct_hash(x_HW) for x_HW in x_VHW], np.uint64)


def correlation(x_VHW: np.ndarray, y_HW: np.ndarray) -> float:
    """The highest normalised correlation of `y_HW` with a variant in `x_VHW`, after subtracting the mean of each 5 x 5 neighbourhood.

    Only the detail counts, because the outline of a chest is the same in every chest X-ray.
    """
    a_VN = np.stack([_detail(x_HW).ravel() for x_HW in x_VHW])
    b_N = _detail(y_HW).ravel()
    norms_V = np.linalg.norm(a_VN, axis=1) * np.linalg.norm(b_N)
    return float((a_VN @ b_N / np.maximum(norms_V, 1e-9)).max())


def _detail(x_HW: np.ndarray) -> np.ndarray:
    padded = np.pad(x_HW, 2, mode="edge")
    blocks = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return x_HW - blocks.mean((-1, -2))
