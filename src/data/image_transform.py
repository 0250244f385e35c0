"""Encoded image -> uint8 array, squashed to the encoder's square.

Squashed, not cropped or padded: nothing of the image is lost, and exported processors of transformers can do exactly the same.
"""

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional

from src.data.open_image import FORMATS, decodes_directly, rgb
from src.data.shards import Shards

BLANK = "blank"


def decode_jpeg(data: bytes, *, size: int, exact: bool = False) -> np.ndarray:
    """An encoded image -> uint8 (3, size, size), with the pixels of `src.data.open_image.rgb`.

    The fast path decodes at a half, a quarter or an eighth where that is not below `size` (libjpeg's other fractions cost more than
    decoding everything), then resizes bicubically in torch, which gives Pillow's pixels in a fifth of its time. It takes upright
    JPEG files that are not CMYK. `exact` leaves all of it to Pillow, at full size.
    """
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data) if simplejpeg.is_jpeg(data) else (0, 0, "", "")
    if exact or not decodes_directly(data, colours):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return resize_to_square(rgb(image), size)
    part = next((part for part in (8, 4, 2) if min(height, width) >= part * size), 1)
    pixels_HWC = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=-(-height // part), min_width=-(-width // part))
    pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    return functional.interpolate(pixels_1CHW, (size, size), mode="bicubic", antialias=True)[0].contiguous().numpy()


def record_pixels(shards: Shards, row: int, *, size: int, exact: bool) -> list[np.ndarray]:
    """The images of a sample, decoded; raises `UserError` where the shard holds something else in their place."""
    record = shards[row]
    try:
        return [decode_jpeg(image, size=size, exact=exact) for image in record.images]
    except (OSError, ValueError):
        raise shards.changed(row) from None


def resize_to_square(image: Image.Image, size: int) -> np.ndarray:
    """An RGB picture -> uint8 (3, size, size)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
