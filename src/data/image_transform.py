"""Encoded image -> uint8 array of the encoder's input size.

Images are resized to a square without cropping or padding: nothing of the image is lost, and exported processors of transformers can do
exactly the same.
"""

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional

from src.data.image_conversion import FORMATS, decodes_directly, to_rgb
from src.data.shards import Shards


def decode_image(data: bytes, *, size: int, exact: bool = False) -> np.ndarray:
    """An encoded image -> uint8 (3, size, size), with the pixels of `src.data.image_conversion.to_rgb`.

    The fast path is for upright JPEG files that are not CMYK. It decodes at a half, a quarter or an eighth if that is not below `size`
    (the other fractions of libjpeg cost more than decoding everything), then resizes bicubically in torch, which gives the pixels of
    Pillow in a fifth of its time. `exact` uses Pillow for everything, at full size.
    """
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data) if simplejpeg.is_jpeg(data) else (0, 0, "", "")
    if exact or not decodes_directly(data, colours):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return resize_to_square(to_rgb(image), size)
    part = next((part for part in (8, 4, 2) if min(height, width) >= part * size), 1)
    pixels_HWC = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=-(-height // part), min_width=-(-width // part))
    pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    return functional.interpolate(pixels_1CHW, (size, size), mode="bicubic", antialias=True)[0].contiguous().numpy()


def record_pixels(shards: Shards, row: int, *, size: int, exact: bool) -> list[np.ndarray]:
    """The decoded images of a sample. Raises `UserError` if an image cannot be decoded, since the shard must have changed."""
    record = shards[row]
    try:
        return [decode_image(image, size=size, exact=exact) for image in record.images]
    except (OSError, ValueError):
        raise shards.mismatch_error(row) from None


def resize_to_square(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image -> uint8 (3, size, size)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
