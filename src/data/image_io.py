"""Reads an image file that a user supplies (PNG, JPEG, TIFF, WebP or DICOM, recognised by content, not by name) as one RGB image.

The result holds pixels only, without EXIF data and DICOM tags. Limits are checked before anything is decoded, so that neither a small
file that declares a huge image nor a compressed one can fill the memory.
"""

import io
import warnings
from collections.abc import MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from src.data.image_conversion import MAX_PIXELS, MIN_SIDE, to_grey, to_rgb
from src.runtime.errors import UserError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
MAX_BYTES = 512 * 2**20
DEFLATED = "1.2.840.10008.1.2.1.99"  # DICOM transfer syntax: the whole data set is one zip stream of unknown size


def read_image(path: Path, *, frame: int | None = None, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """The image in a file, upright, 8-bit RGB. `frame` counts from 0 and is required if the file holds several.

    Images other than DICOM are converted by `src.data.image_conversion.to_rgb`, as in training. DICOM values are rescaled, windowed as
    the file specifies (else by their own range), and MONOCHROME1 is inverted (PS3.3 C.7.6.3, C.11.1, C.11.2).
    Raises `UserError` with the name of the file if it cannot be read.
    """
    name = path.name if len(path.name) <= 80 else f"{path.name[:40]}...{path.name[-20:]}"
    try:
        size = path.stat().st_size
    except OSError:
        raise UserError(f"{path}: no such image file") from None
    if not path.is_file():
        raise UserError(f"{path}: not a file; give one image file")
    if size == 0:
        raise UserError(f"{name}: the file is empty")
    if size > max_bytes:
        raise UserError(f"{name}: the file has {size / 2**20:.0f} MiB, at most {max_bytes / 2**20:.0f} MiB are allowed")
    with path.open("rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_dicom(path, frame, max_pixels) if is_dicom else _read_picture(path, frame, max_pixels)
    except ImageError as error:
        raise UserError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a readable image; allowed are {', '.join(FORMATS)} and DICOM files") from None
    except DecompressionBombError:
        raise UserError(f"{name}: more than {max_pixels / 1e6:g} megapixels") from None
    except Exception as error:  # decoders raise many kinds of exceptions
        raise UserError(f"{name}: the file is broken ({_first_line(error)})") from None


class ImageError(Exception):
    """Why a file cannot be read; the caller adds its name."""


def _read_picture(path: Path, frame: int | None, max_pixels: int) -> Image.Image:
    with Image.open(path, formats=list(FORMATS)) as image:
        _check_size(*image.size, max_pixels)
        # A phone's JPEG with an embedded preview (MPO) counts as one frame.
        frames = 1 if image.format in ("MPO", "JPEG") else getattr(image, "n_frames", 1)
        number = _frame_number(frame, frames)
        if number:
            image.seek(number)
            _check_size(*image.size, max_pixels)
        return to_rgb(image)


def _read_dicom(path: Path, frame: int | None, max_pixels: int) -> Image.Image:
    from pydicom import dcmread  # takes longer than everything else here, and most images are no DICOM files
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import apply_color_lut, pixel_array

    syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    if syntax == DEFLATED:
        raise ImageError("a deflated DICOM file, whose size is unknown before it is unpacked; convert it to explicit little endian")
    data = dcmread(path)
    if "PixelData" not in data:
        kind = "a DICOMDIR" if "DirectoryRecordSequence" in data else "a DICOM file"
        raise ImageError(f"{kind} without an image; give a DICOM file with one")
    rows, columns, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
    _check_size(columns, rows, max_pixels)
    number = _frame_number(frame, frames)
    try:
        pixels = pixel_array(data, index=number if frames > 1 else 0)
    except (RuntimeError, NotImplementedError):
        raise ImageError(f"compressed with DICOM transfer syntax {syntax}, which is not supported; convert the file first") from None
    if data.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, data)[..., :3]  # a fourth channel is opacity
        return _colour_image(colours, bits=min(int(data.RedPaletteColorLookupTableDescriptor[2]), 8 * colours.itemsize))
    if pixels.ndim == 3:
        return _colour_image(pixels, bits=int(data.BitsStored))
    return _windowed_image(pixels, data)


def _colour_image(values_HW3: np.ndarray, *, bits: int) -> Image.Image:
    return Image.fromarray(np.clip(values_HW3 >> max(bits - 8, 0), 0, 255).astype(np.uint8), "RGB")


def _windowed_image(stored_HW: np.ndarray, data: "FileDataset") -> Image.Image:
    """Stored values -> modality values -> grey levels of the window."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values_HW = apply_modality_lut(stored_HW, data)
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    if "VOILUTSequence" in data:
        return to_grey(apply_voi_lut(values_HW, data), inverted=inverted)
    if "WindowWidth" not in data or "WindowCenter" not in data:
        return to_grey(values_HW, inverted=inverted)
    centre, width = float(_first(data.WindowCenter)), float(_first(data.WindowWidth))
    if str(data.get("VOILUTFunction", "LINEAR")) == "LINEAR":  # PS3.3 C.11.2.1.2.1
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    else:  # LINEAR_EXACT; the same range approximates SIGMOID
        low, high = centre - width / 2, centre + width / 2
    scaled_HW = np.clip((values_HW.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    grey_HW = np.rint(255 * scaled_HW).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if inverted else grey_HW).convert("RGB")


def _frame_number(frame: int | None, frames: int) -> int:
    if frame is None and frames > 1:
        raise ImageError(f"the file holds {frames} frames; choose one with frame=0 to frame={frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ImageError(f"no frame {frame}; the file holds {frames}, counted from 0")
    return frame or 0


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels, at most {max_pixels / 1e6:g} megapixels are allowed")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{width} x {height} pixels, at least {MIN_SIDE} on each side are required")


def _first(value):
    return value[0] if isinstance(value, MutableSequence) else value


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (line or type(error).__name__)[:200]


def to_png(image: Image.Image) -> bytes:
    """The image as a new PNG file, so that the bytes of an upload are never passed on."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
