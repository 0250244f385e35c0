"""Encodes an image of any allowed format as an RGB JPEG of bounded size, with the values that the index stores."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.Image import DecompressionBombError, Resampling

from src.data.image_conversion import FORMATS, MAX_PIXELS, MIN_SIDE, SCAN, decodes_directly, jpeg_segments, to_rgb
from src.data.near_duplicates import HASH_SIDE, perceptual_hash


class InvalidImage(Exception):
    """An image that cannot be used. The message is the reason; text after a colon is detail."""


@dataclass(frozen=True)
class EncodedImage:
    jpeg: bytes
    width: int  # of the original, pixels
    height: int
    hash: int  # 64-bit perceptual hash


def encode_image(data: bytes, *, max_side: int, quality: int) -> EncodedImage:
    """Encodes an image as RGB JPEG (4:2:0 at `quality`) without metadata, its longer side at most `max_side` pixels.

    An RGB JPEG within the bound keeps its compressed pixel data; only its metadata segments are removed. A larger one is
    decoded at the smallest eighth of its size that is not below the bound, then resized bicubically. All other images are
    opened by Pillow and converted by `src.data.image_conversion.to_rgb`. Raises `InvalidImage`.
    """
    if simplejpeg.is_jpeg(data):
        try:
            return _encode_jpeg(data, max_side=max_side, quality=quality)
        except ValueError as error:
            if "premature end" in str(error).lower():
                raise InvalidImage(f"truncated image: {error}") from None
    image = open_image(data)
    return _resize_and_encode(image, image.size, None, max_side=max_side, quality=quality)


def _encode_jpeg(data: bytes, *, max_side: int, quality: int) -> EncodedImage:
    """The fast path for JPEG files. Raises ValueError if a file needs the general path."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height)
    parts = _segments(data)
    if not decodes_directly(data, colours):
        raise ValueError("CMYK or rotated")
    keep_pixels = max(width, height) <= max_side and colours != "Gray"
    min_side = 4 * HASH_SIDE if keep_pixels else max_side
    longer_side = {"min_width": min_side} if width >= height else {"min_height": min_side}
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", **longer_side)
    image = Image.fromarray(pixels)
    if keep_pixels:
        return EncodedImage(parts.head + data[parts.scan :], width, height, perceptual_hash(image))
    return _resize_and_encode(image, (width, height), pixels, max_side=max_side, quality=quality)


def _resize_and_encode(
    image: Image.Image, size: tuple[int, int], pixels: np.ndarray | None, *, max_side: int, quality: int
) -> EncodedImage:
    """Resizes to the bound if needed and encodes as JPEG.

    `size` is the (width, height) of the original. `image` may be decoded at a smaller size, but not below the bound. `pixels`
    is `image` as an array (uint8, HxWx3) if the caller has it; reading it back from Pillow takes a tenth of the whole time.
    """
    scale = max_side / max(size)
    if scale < 1:
        target = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        if image.size != target:
            image, pixels = image.resize(target, Resampling.BICUBIC, reducing_gap=3.0), None
    pixels = np.asarray(image) if pixels is None else pixels
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return EncodedImage(jpeg, *size, perceptual_hash(image))


def open_image(data: bytes) -> Image.Image:
    """Opens an image of any allowed format as upright RGB. Raises `InvalidImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                return to_rgb(image)
    except InvalidImage:
        raise
    except UnidentifiedImageError:
        raise InvalidImage("not an image that can be read") from None
    except DecompressionBombError as error:
        raise InvalidImage(f"image of more than {MAX_PIXELS // 1_000_000} megapixels: {error}") from None
    except Exception as error:  # decoders raise many types of errors on damaged files
        is_message = isinstance(error, (OSError, SyntaxError)) and str(error)  # the other types have texts for programmers
        raise InvalidImage(f"broken image: {error if is_message else 'it cannot be decoded'}"[:200]) from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidImage(f"image of more than {MAX_PIXELS // 1_000_000} megapixels: {width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(f"image of less than {MIN_SIDE} pixels: {width} x {height}")


@dataclass(frozen=True)
class _Segments:
    head: bytes  # everything before the first scan, without metadata
    scan: int  # byte offset of the first scan


def _segments(data: bytes) -> _Segments:
    """Keeps the tables and the two segments that define the colour space (JFIF, Adobe). Removes the other APPn segments and
    comments, which may name a patient. Raises ValueError like `jpeg_segments`."""
    head, at = [data[:2]], 2
    for marker, at, end in jpeg_segments(data):
        body = data[at:end]
        if marker != SCAN and (not (0xE0 <= marker <= 0xEF or marker == 0xFE) or body[4:9] == b"JFIF\0" or body[4:9] == b"Adobe"):
            head.append(body)
    return _Segments(b"".join(head), at)
