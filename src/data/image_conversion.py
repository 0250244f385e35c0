"""Conversion of any decoded image to upright 8-bit RGB, the same for shards, transfer, the audit, `ask` and the demo.

The readers decide which files they accept and how large these may be.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")  # without EPS, which Pillow reads with an interpreter
MAX_PIXELS = 50_000_000  # of an accepted file; checked before the image is decoded
MIN_SIDE = 8  # pixels; smaller images are rejected
ORIENTATION = 274  # EXIF tag
APP1, SCAN = 0xE1, 0xDA  # JPEG markers: EXIF or XMP metadata; start of the pixel data
TRANSPOSES = {  # EXIF orientation -> operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as Pillow opened it -> upright 8-bit RGB without metadata.

    The EXIF rotation is applied. 16-bit and float grey values are scaled by their own range. Transparency becomes white. CMYK is read as
    Adobe writes it (inverted), or without inversion in a JPEG file without an Adobe marker. Of an animation the current frame is used.
    """
    image.load()
    upright = image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        upright = ImageChops.invert(image)  # Pillow inverts every CMYK JPEG, as if Adobe had written it
    if (transpose := TRANSPOSES.get(orientation(image))) is not None:
        upright = upright.transpose(transpose)
    if upright.mode.startswith("I") or upright.mode == "F":
        return to_grey(np.asarray(upright, dtype=np.float64))
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    without_metadata = Image.new("RGB", upright.size)
    without_metadata.paste(upright.convert("RGB"))
    return without_metadata


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 (upright) to 8. Damaged EXIF data counts as 1, as in image viewers."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises struct.error, TypeError, SyntaxError and others
        return 1


def to_grey(values_HW: np.ndarray, *, inverted: bool = False) -> Image.Image:
    """Values of any range -> grey RGB image; the lowest value is black, or white if `inverted`."""
    values_HW = np.nan_to_num(values_HW.astype(np.float64))
    low, high = values_HW.min(), values_HW.max()
    grey_HW = np.rint((values_HW - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if inverted else grey_HW).convert("RGB")


def decodes_directly(jpeg: bytes, colours: str) -> bool:
    """Whether a plain JPEG decoder gives the pixels of `to_rgb`: the image is upright, and `colours`, its colour space, is not CMYK."""
    if colours not in ("YCbCr", "RGB", "Gray"):
        return False
    try:
        if all(marker != APP1 for marker, _, _ in jpeg_segments(jpeg)):
            return True
    except ValueError:  # Pillow may still be able to read it
        pass
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return orientation(image) not in TRANSPOSES


def jpeg_segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments of a JPEG file up to the header of its first scan.

    Raises ValueError for a file without this structure.
    """
    start = 2
    while start + 4 <= len(jpeg):
        marker, end = jpeg[start + 1], start + 2 + int.from_bytes(jpeg[start + 2 : start + 4])
        if jpeg[start] != 0xFF or marker == 0xFF:
            raise ValueError("a marker is missing in a JPEG file")
        yield marker, start, end
        if marker == SCAN:
            return
        start = end
    raise ValueError("a JPEG file has no scan")
