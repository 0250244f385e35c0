"""The pixels of an image file: the same for shards, transfer, the audit, ask and the demo, whatever the file format.

Which files are accepted, and how large they may be, is decided where they are read.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")  # without EPS, which Pillow reads with an interpreter
MAX_PIXELS = 50_000_000  # of a file that is prepared, asked about or shown; checked before the image is decoded
MIN_SIDE = 8  # pixels; smaller images show nothing
ORIENTATION = 274  # EXIF tag
APP1, SCAN = 0xE1, 0xDA  # JPEG markers: EXIF or XMP metadata; what follows is pixel data
TURNS = {  # EXIF orientation -> how the image becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def rgb(image: Image.Image) -> Image.Image:
    """An image as Pillow opened it -> upright, 8 bits, RGB, without metadata.

    The EXIF rotation is applied. 16-bit and float grey is scaled by its own range. Transparency becomes white. CMYK is read as Adobe
    writes it (inverted), or as it stands in a JPEG file without an Adobe marker. Of an animation the current frame is taken.
    """
    image.load()
    upright = image
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        upright = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's
    if (turn := TURNS.get(orientation(image))) is not None:
        upright = upright.transpose(turn)
    if upright.mode.startswith("I") or upright.mode == "F":
        return grey(np.asarray(upright, dtype=np.float64))
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    bare = Image.new("RGB", upright.size)
    bare.paste(upright.convert("RGB"))
    return bare


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 (upright) to 8; 1 where its EXIF data is damaged, as viewers show it."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises struct.error, TypeError, SyntaxError and others
        return 1


def grey(values_HW: np.ndarray, *, inverted: bool = False) -> Image.Image:
    """Values of any range -> grey RGB image; the lowest is black, or white if `inverted`."""
    values_HW = np.nan_to_num(values_HW.astype(np.float64))
    low, high = values_HW.min(), values_HW.max()
    grey_HW = np.rint((values_HW - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if inverted else grey_HW).convert("RGB")


def decodes_directly(jpeg: bytes, colours: str) -> bool:
    """Whether a JPEG decoder gives the pixels of `rgb`: the image is upright, and its colour space (of the header) is not CMYK."""
    if colours not in ("YCbCr", "RGB", "Gray"):
        return False
    try:
        if all(marker != APP1 for marker, _, _ in segments(jpeg)):
            return True
    except ValueError:  # Pillow may still find its way
        pass
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return orientation(image) not in TURNS


def segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments of a JPEG file up to the header of its first scan.

    Raises ValueError where there is no such structure.
    """
    at = 2
    while at + 4 <= len(jpeg):
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at] != 0xFF or marker == 0xFF:
            raise ValueError("a JPEG file has no marker where one is due")
        yield marker, at, end
        if marker == SCAN:
            return
        at = end
    raise ValueError("a JPEG file has no scan")
