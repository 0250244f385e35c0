"""Whatever a dataset calls an image -> a bounded RGB JPEG and what the index says of it."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.Image import DecompressionBombError, Resampling

from src.data.image_conversion import FORMATS, MAX_PIXELS, MIN_SIDE, SCAN, decodes_directly, jpeg_segments, to_rgb


class InvalidImage(Exception):
    """Why an image cannot be used; what follows a colon is detail."""


@dataclass(frozen=True)
class EncodedImage:
    jpeg: bytes
    width: int  # as it came, pixels
    height: int
    hash: int  # 64-bit perceptual hash


def encode_image(data: bytes, *, max_side: int, quality: int) -> EncodedImage:
    """The image as RGB JPEG (4:2:0 at `quality`), its longer side at most `max_side` pixels, without metadata.

    An RGB JPEG within the bound keeps its pixel data byte for byte, only its metadata segments go. A larger one is decoded
    at the smallest eighth that is not below the bound, then resized bicubically. Everything else is opened by Pillow and
    converted by `src.data.image_conversion.to_rgb`. Raises `BadImage`.
    """
    if simplejpeg.is_jpeg(data):
        try:
            return _encode_jpeg(data, max_side=max_side, quality=quality)
        except ValueError as error:
            if "premature end" in str(error).lower():
                raise InvalidImage(f"truncated image: {error}") from None
    image = open_image(data)
    return _bounded(image, image.size, None, max_side=max_side, quality=quality)


def _encode_jpeg(data: bytes, *, max_side: int, quality: int) -> EncodedImage:
    """The fast path; a ValueError says that this file is not for it."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height)
    parts = _segments(data)
    if not decodes_directly(data, colours):
        raise ValueError("CMYK or rotated")
    kept = max(width, height) <= max_side and colours != "Gray"
    bound = 4 * HASH_SIDE if kept else max_side
    longer = {"min_width": bound} if width >= height else {"min_height": bound}
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", **longer)
    image = Image.fromarray(pixels)
    if kept:
        return EncodedImage(parts.head + data[parts.scan :], width, height, perceptual_hash(image))
    return _bounded(image, (width, height), pixels, max_side=max_side, quality=quality)


def _bounded(image: Image.Image, size: tuple[int, int], pixels: np.ndarray | None, *, max_side: int, quality: int) -> EncodedImage:
    """`image` may be smaller than `size` (width, height), the image as it came, but not below the bound; `pixels` are its own, where
    they are at hand: Pillow takes a tenth of the whole time to give them back."""
    scale = max_side / max(size)
    if scale < 1:
        target = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        if image.size != target:
            image, pixels = image.resize(target, Resampling.BICUBIC, reducing_gap=3.0), None
    pixels = np.asarray(image) if pixels is None else pixels
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return EncodedImage(jpeg, *size, perceptual_hash(image))


def open_image(data: bytes) -> Image.Image:
    """Any allowed format -> upright RGB. Raises `BadImage`."""
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
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise InvalidImage(f"broken image: {type(error).__name__} {error}"[:200]) from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidImage(f"image of more than {MAX_PIXELS // 1_000_000} megapixels: {width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise InvalidImage(f"image of less than {MIN_SIDE} pixels: {width} x {height}")


@dataclass(frozen=True)
class _Segments:
    head: bytes  # what is before the first scan, without metadata
    scan: int  # where the first scan begins


def _segments(data: bytes) -> _Segments:
    """Kept are the tables and the two segments that tell the colour space (JFIF, Adobe); APPn and comments, which may name a patient,
    go. Raises ValueError as `jpeg_segments` does."""
    kept, at = [data[:2]], 2
    for marker, at, end in jpeg_segments(data):
        body = data[at:end]
        if marker != SCAN and (not (0xE0 <= marker <= 0xEF or marker == 0xFE) or body[4:9] == b"JFIF\0" or body[4:9] == b"Adobe"):
            kept.append(body)
    return _Segments(b"".join(kept), at)


HASH_SIDE = 32
_FREQUENCY = np.arange(8)[:, None] * (np.arange(HASH_SIDE)[None] + 0.5) * np.pi / HASH_SIDE
_COSINES = np.cos(_FREQUENCY)  # (8, 32): the lowest rows of a DCT-II


def perceptual_hash(image: Image.Image) -> int:
    """Of the 32 x 32 grey thumbnail; 0 is kept for 'no image'."""
    return dct_hash(thumbnail(image))


def thumbnail(image: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """float x_HW of 32 x 32 grey pixels. A filter that overlaps keeps the grid of the pixels out of the hash: with a plain mean
    over blocks, one of five copies at half size is lost."""
    small = image.convert("L").resize((HASH_SIDE, HASH_SIDE), Resampling.BILINEAR, box, reducing_gap=3.0)
    return np.asarray(small, np.float64)


def dct_hash(x_HW: np.ndarray) -> int:
    """64 bits: the lowest 8 x 8 DCT coefficients of a grey thumbnail, each against their median (pHash, Zauner 2010).
    A picture without any contrast gets 1."""
    low = (_COSINES @ x_HW @ _COSINES.T).ravel()
    bits = low > np.partition(low[1:], 31)[31]  # the median of 63
    return int(np.packbits(bits).view(">u8")[0]) or 1
