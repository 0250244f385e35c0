"""Image files for trials and tests: DICOM files, and files that must be refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless

RAMP = np.arange(16 * 12, dtype=np.uint16).reshape(12, 16) * 20  # 0 to 3820


def dicom(path: Path, pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **tags) -> Path:
    """Writes a secondary capture. Grey pixels are 16 bit (H, W) or (frames, H, W), colour is (H, W, 3) in uint8 or uint16."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.PatientName = "Secret^Name"
    colour = pixels.shape[-1] == 3
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if not colour and pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype == np.int16)
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def header_bomb() -> bytes:
    """A PNG of a few bytes whose header states 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def picture(kind: str, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def hostile(folder: Path) -> dict[str, tuple[bytes, str]]:
    """(bytes, part of the error message) of each file that must be refused, by name."""
    png, jpeg = picture("PNG"), picture("JPEG")
    deflated = dicom(folder / "deflated.dcm", RAMP, syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    good = dicom(folder / "good.dcm", RAMP).read_bytes()
    foreign = pydicom.dcmread(dicom(folder / "foreign.dcm", RAMP))
    foreign.file_meta.TransferSyntaxUID, foreign.PixelData = JPEGLSLossless, encapsulate([b"\xff\xd8" + bytes(98)])
    foreign["PixelData"].is_undefined_length = True
    foreign.save_as(folder / "foreign.dcm")
    frames = io.BytesIO()
    Image.new("RGB", (9, 9)).save(frames, "WEBP", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    return {
        "empty.png": (b"", "the file is empty"),
        "cut.png": (png[: len(png) // 2], "the file is broken"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "the file is broken"),
        "page.png": (b"<!doctype html><script>alert(1)</script>", "not a readable image"),
        "drawing.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not a readable image"),
        "print.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a readable image"),
        "archive.png": (b"PK\x03\x04" + bytes(100), "not a readable image"),
        "anim.gif": (picture("GIF"), "not a readable image; allowed are PNG, JPEG, TIFF, WEBP and DICOM files"),
        "bomb.png": (header_bomb(), "megapixels"),
        "dot.png": (picture("PNG", (1, 1)), "at least 8 on each side"),
        "line.png": (picture("PNG", (2000, 2)), "at least 8 on each side"),
        "moving.webp": (frames.getvalue(), "holds 2 frames"),
        "cut.dcm": (good[:300], ""),
        "deflated.dcm": (deflated, "deflated DICOM"),
        "foreign.dcm": ((folder / "foreign.dcm").read_bytes(), "transfer syntax 1.2.840.10008.1.2.4.80"),
        "bare.dcm": (bytes(128) + b"DICM", ""),
        "DICOMDIR": (dicomdir(folder / "DICOMDIR").read_bytes(), "a DICOMDIR without an image"),
        "report.png": (b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", "not a readable image"),
        "flat.tif": (picture("TIFF")[:60], ""),
        "noise.dcm": (bytes(128) + b"DICM" + np.random.default_rng(0).bytes(500), ""),
    }


def dicomdir(path: Path) -> Path:
    """A DICOMDIR whose only record refers to another file."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["ETC", "PASSWD"]
    data.DirectoryRecordSequence = [record]
    data.save_as(path, enforce_file_format=True)
    return path
