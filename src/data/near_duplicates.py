"""Whether two images are the same one, cropped, mirrored or encoded again."""

import io

import numpy as np
from PIL import Image
from PIL.Image import Resampling

CROPS = (0.0, 0.025, 0.05)  # of each side
MIN_CORRELATION = 0.98  # of a copy; experiments/leaks measures copies and other images
HASH_SIDE = 32
_FREQUENCY = np.arange(8)[:, None] * (np.arange(HASH_SIDE)[None] + 0.5) * np.pi / HASH_SIDE
_COSINES = np.cos(_FREQUENCY)  # (8, 32): the lowest frequencies of a DCT-II


def perceptual_hash(image: Image.Image) -> int:
    """64-bit hash of the 32 x 32 grey thumbnail; never 0, which stands for 'no image' in the index."""
    return dct_hash(thumbnail(image))


def thumbnail(image: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """The image, or its `box`, as 32 x 32 grey pixels (float, x_HW).

    The filter overlaps, so that the hash does not depend on the pixel grid. With a plain mean over blocks, one in five
    copies at half size is missed.
    """
    small = image.convert("L").resize((HASH_SIDE, HASH_SIDE), Resampling.BILINEAR, box, reducing_gap=3.0)
    return np.asarray(small, np.float64)


def dct_hash(x_HW: np.ndarray) -> int:
    """64-bit perceptual hash: the lowest 8 x 8 DCT coefficients of a grey thumbnail, compared with their median (pHash, Zauner
    2010). An image without contrast gets 1."""
    low = (_COSINES @ x_HW @ _COSINES.T).ravel()
    bits = low > np.partition(low[1:], 31)[31]  # the median of 63
    return int(np.packbits(bits).view(">u8")[0]) or 1


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
