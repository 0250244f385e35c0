"""A file that a person hands over -> one RGB picture: PNG, JPEG, TIFF, WebP or DICOM, recognised by content, never by name.

What comes back holds pixels only: EXIF and DICOM tags stay behind. Limits hold before anything is decoded, so that neither a
small file that claims to be huge nor a deflated one can fill the memory.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import DecompressionBombError
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from src.data.open_image import MAX_PIXELS, MIN_SIDE, grey, rgb
from src.runtime.errors import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
MAX_BYTES = 512 * 2**20
DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax: the whole data set is one zip stream, of unknown size


def read_image(path: Path, *, frame: int | None = None, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """The picture in a file, upright, 8-bit RGB. `frame` counts from 0 and must be given where a file holds several.

    Pictures are converted by `src.data.open_image.rgb`, as those of training. DICOM is rescaled, windowed as the file says (else by
    its own range) and MONOCHROME1 inverted (PS3.3 C.7.6.3, C.11.1, C.11.2).
    Whatever cannot be shown is a `UserError` that names the file.
    """
    name = path.name if len(path.name) <= 80 else f"{path.name[:40]}...{path.name[-20:]}"
    try:
        size = path.stat().st_size
    except OSError:
        raise UserError(f"there is no image file {path}") from None
    if not path.is_file():
        raise UserError(f"{path} is no file; give one image file")
    if size == 0:
        raise UserError(f"{name} is empty")
    if size > max_bytes:
        raise UserError(f"{name} has {size / 2**20:.0f} MiB; at most {max_bytes / 2**20:.0f} are read")
    with path.open("rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _dicom(path, frame, max_pixels) if is_dicom else _picture(path, frame, max_pixels)
    except ImageError as error:
        raise UserError(f"{name} {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is no image that can be read; allowed: {', '.join(FORMATS)} and DICOM files") from None
    except DecompressionBombError:
        raise UserError(f"{name} has more than {max_pixels / 1e6:g} megapixels") from None
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise UserError(f"{name} is broken: {_first_line(error)}") from None
    return image


class ImageError(Exception):
    """What is wrong with a file, said after its name."""


def _picture(path: Path, frame: int | None, max_pixels: int) -> Image.Image:
    with Image.open(path, formats=list(FORMATS)) as image:
        _check_size(*image.size, max_pixels)
        # A phone's JPEG with a preview in it (MPO) is one picture.
        frames = 1 if image.format in ("MPO", "JPEG") else getattr(image, "n_frames", 1)
        number = _choose(frame, frames)
        if number:
            image.seek(number)
            _check_size(*image.size, max_pixels)
        return rgb(image)


def _dicom(path: Path, frame: int | None, max_pixels: int) -> Image.Image:
    meta = read_file_meta_info(path)
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax == DEFLATED:
        raise ImageError("is a deflated DICOM file, whose size is not known before it is unpacked; store it explicit little endian")
    data = dcmread(path)
    if "PixelData" not in data:
        what = "a DICOMDIR" if "DirectoryRecordSequence" in data else "a DICOM file"
        raise ImageError(f"is {what} without an image in it")
    rows, columns, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
    _check_size(columns, rows, max_pixels)
    number = _choose(frame, frames)
    try:
        pixels = pixel_array(data, index=number if frames > 1 else 0)
    except (RuntimeError, NotImplementedError):
        raise ImageError(f"is compressed with DICOM transfer syntax {syntax}, which cannot be decoded here; convert it first") from None
    if data.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, data)[..., :3]  # a fourth is opacity
        return _colours(colours, bits=min(int(data.RedPaletteColorLookupTableDescriptor[2]), 8 * colours.itemsize))
    if pixels.ndim == 3:
        return _colours(pixels, bits=int(data.BitsStored))
    return _windowed(pixels, data)


def _colours(values_HW3: np.ndarray, *, bits: int) -> Image.Image:
    return Image.fromarray(np.clip(values_HW3 >> max(bits - 8, 0), 0, 255).astype(np.uint8), "RGB")


def _windowed(stored_HW: np.ndarray, data: FileDataset) -> Image.Image:
    """Stored values -> modality values -> the display range of the window, as grey."""
    values_HW = apply_modality_lut(stored_HW, data)
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    if "VOILUTSequence" in data:
        return grey(apply_voi_lut(values_HW, data), inverted=inverted)
    if "WindowWidth" not in data or "WindowCenter" not in data:
        return grey(values_HW, inverted=inverted)
    centre, width = float(_first(data.WindowCenter)), float(_first(data.WindowWidth))
    if str(data.get("VOILUTFunction", "LINEAR")) == "LINEAR":  # PS3.3 C.11.2.1.2.1
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    else:  # LINEAR_EXACT; SIGMOID is shown by the same range
        low, high = centre - width / 2, centre + width / 2
    shown_HW = np.clip((values_HW.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    grey_HW = np.rint(255 * shown_HW).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if inverted else grey_HW).convert("RGB")


def _choose(frame: int | None, frames: int) -> int:
    if frame is None and frames > 1:
        raise ImageError(f"holds {frames} frames; choose one with frame=0 to frame={frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ImageError(f"has no frame {frame}; it holds {frames}, counted from 0")
    return frame or 0


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"has {width} x {height} pixels; at most {max_pixels / 1e6:g} megapixels are read")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"has {width} x {height} pixels; less than {MIN_SIDE} on a side show nothing")


def _first(value):
    return value[0] if isinstance(value, MultiValue | list | tuple) else value


def _first_line(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (said or type(error).__name__)[:200]


def to_png(image: Image.Image) -> bytes:
    """Re-encoded: the bytes of the upload are never handed on."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
