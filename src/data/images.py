"""Encoded image -> uint8 array, squashed to the encoder's square.

Squashed, not cropped or padded: nothing of the image is lost, and exported processors of transformers can do exactly the same.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

BLANK = "blank"


def decode(data: bytes, *, size: int, exact: bool = False) -> np.ndarray:
    """JPEG bytes -> uint8 (3, size, size).

    The fast path decodes at the smallest of libjpeg's eighths that is not below `size`, then resizes bicubically; `exact`
    decodes at full size first, as PIL-based pipelines do.
    """
    if exact or not simplejpeg.is_jpeg(data):
        image = Image.open(io.BytesIO(data)).convert("RGB")
    else:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=size, min_width=size, fastdct=False, fastupsample=False)
        image = Image.fromarray(pixels)
    return squash(image, size)


def squash(image: Image.Image, size: int) -> np.ndarray:
    """An RGB picture -> uint8 (3, size, size)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
