"""Pictures from files: what is shown is what the file says, and what cannot be shown is one sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from src.data.image_io import read_image, to_png
from src.runtime.errors import UserError

RAMP = np.arange(16 * 12, dtype=np.uint16).reshape(12, 16) * 20  # 0 to 3820


def shown(path: Path, **options) -> np.ndarray:
    image = read_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def dicom(path: Path, pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **tags) -> Path:
    """A secondary capture; grey pixels are 16 bit (H, W) or (frames, H, W), colour (H, W, 3) uint8 or uint16."""
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


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_lossless_formats_are_read_by_content_not_by_name(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "wrong.txt"
    Image.fromarray(pixels).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(shown(path), pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_contrast(tmp_path, kind):
    path = tmp_path / "deep"
    Image.fromarray(RAMP).save(path, kind)
    assert np.array_equal(shown(path)[..., 0], np.rint(RAMP / 3820 * 255))


def test_rotation_is_applied_and_metadata_is_dropped(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274], exif[270] = 6, "Secret Name"
    image.save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    assert found.size == (8, 16)
    assert np.asarray(found)[:8].min() == 255
    assert not found.getexif()
    assert not found.info
    assert b"Secret" not in to_png(found)


def test_transparency_is_white_and_cmyk_is_read(tmp_path):
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert shown(tmp_path / "clear.png").min() == 255
    Image.new("CMYK", (9, 9), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert shown(tmp_path / "cmyk.jpg").min() > 250


def test_dicom_window_is_linear_as_the_standard_says(tmp_path):
    """PS3.3 C.11.2.1.2.1 at slope 2, intercept -1000: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255."""
    path = dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[1000, 5], WindowWidth=[2000, 5])
    x = RAMP * 2.0 - 1000
    expected = np.clip(((x - 999.5) / 1999 + 0.5) * 255, 0, 255)
    found = shown(path)
    assert np.abs(found[..., 0] - expected).max() <= 0.5
    inverted = shown(
        dicom(
            tmp_path / "b.dcm",
            RAMP,
            RescaleSlope=2,
            RescaleIntercept=-1000,
            WindowCenter=1000,
            WindowWidth=2000,
            PhotometricInterpretation="MONOCHROME1",
        )
    )
    assert np.array_equal(inverted, 255 - found)


def test_dicom_without_a_window_is_shown_by_its_range(tmp_path):
    found = shown(dicom(tmp_path / "a.dcm", (RAMP.astype(np.int16) - 1000)))
    assert np.array_equal(found[..., 0], np.rint(RAMP / 3820 * 255))


def test_dicom_colour_and_run_lengths(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    assert np.array_equal(shown(dicom(tmp_path / "a.dcm", colours)), colours)
    path = dicom(tmp_path / "b.dcm", colours)
    packed = pydicom.dcmread(path)
    packed.compress(RLELossless, generate_instance_uid=False)
    packed.save_as(path)
    assert np.array_equal(shown(path), colours)


@pytest.mark.parametrize("stored", [12, 16])
def test_dicom_colour_of_more_than_8_bits_keeps_its_upper_ones(tmp_path, stored):
    colours = np.random.default_rng(0).integers(0, 2**stored, (10, 12, 3)).astype(np.uint16)
    path = dicom(tmp_path / "a.dcm", colours, BitsStored=stored, HighBit=stored - 1)
    assert np.array_equal(shown(path), colours >> (stored - 8))


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_palettes_give_their_colours(tmp_path, bits):
    """PS3.3 C.7.6.3.1.5: the descriptor is (entries, first value, bits per entry)."""
    tables = np.random.default_rng(0).integers(0, 2**bits, (3, 256)).astype(f"uint{bits}")
    tags: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    indices = RAMP // 20
    assert np.array_equal(shown(dicom(tmp_path / "a.dcm", indices, **tags)), (tables >> (bits - 8)).T[indices])


def test_dicom_look_up_tables_of_the_display_are_applied(tmp_path):
    """PS3.3 C.11.2.1.1; the table stands before a window that the file has too."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [192, 0, 16], np.arange(192, dtype=np.uint16)[::-1].tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    found = shown(dicom(tmp_path / "a.dcm", RAMP // 20, VOILUTSequence=[table], WindowCenter=5, WindowWidth=5))
    assert np.array_equal(found[..., 0], np.rint((191 - RAMP // 20) / 191 * 255))


def test_dicom_inverted_grey_without_a_window_is_its_range_upside_down(tmp_path):
    found = shown(dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(found[..., 0], 255 - np.rint(RAMP / 3820 * 255))


def test_of_several_frames_one_is_chosen(tmp_path):
    path = dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP[::-1]]))
    with pytest.raises(UserError, match=r"a\.dcm holds 2 frames; choose one with frame=0 to frame=1"):
        read_image(path)
    assert np.array_equal(shown(path, frame=1), shown(path, frame=0)[::-1])
    with pytest.raises(UserError, match="has no frame 2"):
        read_image(path, frame=2)
    pages = [Image.new("L", (9, 9), value) for value in (10, 200)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert shown(tmp_path / "a.tiff", frame=1).max() == 200
    with pytest.raises(UserError, match="holds 2 frames"):
        read_image(tmp_path / "a.tiff")


def test_no_tag_of_a_dicom_file_stays(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    assert b"Secret" in path.read_bytes()
    found = read_image(path)
    assert not found.info
    assert b"Secret" not in to_png(found)


def header_bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

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
    """name -> (bytes, what the sentence says)."""
    whole, jpeg = picture("PNG"), picture("JPEG")
    deflated = dicom(folder / "deflated.dcm", RAMP, syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    good = dicom(folder / "good.dcm", RAMP).read_bytes()
    foreign = pydicom.dcmread(dicom(folder / "foreign.dcm", RAMP))
    foreign.file_meta.TransferSyntaxUID, foreign.PixelData = JPEGLSLossless, encapsulate([b"\xff\xd8" + bytes(98)])
    foreign["PixelData"].is_undefined_length = True
    foreign.save_as(folder / "foreign.dcm")
    frames = io.BytesIO()
    Image.new("RGB", (9, 9)).save(frames, "WEBP", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    return {
        "empty.png": (b"", "is empty"),
        "cut.png": (whole[: len(whole) // 2], "is broken"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "is broken"),
        "page.png": (b"<!doctype html><script>alert(1)</script>", "is no image that can be read"),
        "drawing.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "is no image that can be read"),
        "print.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "is no image that can be read"),
        "archive.png": (b"PK\x03\x04" + bytes(100), "is no image that can be read"),
        "anim.gif": (picture("GIF"), "is no image that can be read; allowed: PNG, JPEG, TIFF, WEBP and DICOM files"),
        "bomb.png": (header_bomb(), "megapixels"),
        "dot.png": (picture("PNG", (1, 1)), "less than 8 on a side"),
        "line.png": (picture("PNG", (2000, 2)), "less than 8 on a side"),
        "moving.webp": (frames.getvalue(), "holds 2 frames"),
        "cut.dcm": (good[:300], ""),
        "deflated.dcm": (deflated, "deflated DICOM"),
        "foreign.dcm": ((folder / "foreign.dcm").read_bytes(), "transfer syntax 1.2.840.10008.1.2.4.80"),
        "bare.dcm": (bytes(128) + b"DICM", ""),
        "DICOMDIR": (dicomdir(folder / "DICOMDIR").read_bytes(), "is a DICOMDIR without an image in it"),
        "report.png": (b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", "is no image that can be read"),
        "flat.tif": (picture("TIFF")[:60], ""),
        "noise.dcm": (bytes(128) + b"DICM" + np.random.default_rng(0).bytes(500), ""),
    }


def test_hostile_files_are_one_sentence(tmp_path):
    for name, (data, said) in hostile(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(data)
        sentence = refusal(path)
        assert sentence.startswith(name), name
        assert said in sentence, (name, sentence)
        assert "\n" not in sentence


def refusal(path: Path) -> str:
    try:
        read_image(path)
    except UserError as mistake:
        return str(mistake)
    return "read"


def dicomdir(path: Path) -> Path:
    """A directory of a medium, whose only record leads elsewhere."""
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


def test_a_long_name_is_told_short(tmp_path):
    path = tmp_path / ("x" * 200 + ".png")
    path.write_bytes(b"nothing")
    assert refusal(path) == f"{'x' * 40}...{'x' * 16}.png is no image that can be read; allowed: PNG, JPEG, TIFF, WEBP and DICOM files"


def test_limits_hold_before_decoding(tmp_path):
    (tmp_path / "a.png").write_bytes(picture("PNG", (100, 100)))
    with pytest.raises(UserError, match=r"a\.png has 100 x 100 pixels; at most 0\.005 megapixels"):
        read_image(tmp_path / "a.png", max_pixels=5000)
    with pytest.raises(UserError, match="at most 0 are read"):
        read_image(tmp_path / "a.png", max_bytes=1000)
    path = dicom(tmp_path / "a.dcm", RAMP, Rows=30_000, Columns=30_000)
    with pytest.raises(UserError, match="has 30000 x 30000 pixels"):
        read_image(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no image file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="is no file"):
        read_image(tmp_path)
