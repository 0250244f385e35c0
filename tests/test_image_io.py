"""src/data/image_io.py: files give the pixels that they specify; unreadable files raise an error with their name."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from experiments.soak.images import RAMP, dicom, hostile, picture
from src.data.image_io import read_image, to_png
from src.runtime.errors import UserError


def pixels_of(path: Path, **options) -> np.ndarray:
    image = read_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_lossless_formats_are_recognised_by_content(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "wrong.txt"
    Image.fromarray(pixels).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels_of(path), pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_range(tmp_path, kind):
    path = tmp_path / "deep"
    Image.fromarray(RAMP).save(path, kind)
    assert np.array_equal(pixels_of(path)[..., 0], np.rint(RAMP / 3820 * 255))


def test_exif_rotation_is_applied_and_metadata_is_dropped(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274], exif[270] = 6, "Secret Name"
    image.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.size == (8, 16)
    assert np.asarray(image)[:8].min() == 255
    assert not image.getexif()
    assert not image.info
    assert b"Secret" not in to_png(image)


def test_transparency_becomes_white_and_cmyk_is_read(tmp_path):
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pixels_of(tmp_path / "clear.png").min() == 255
    Image.new("CMYK", (9, 9), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert pixels_of(tmp_path / "cmyk.jpg").min() > 250


def test_dicom_window_is_linear_as_in_the_standard(tmp_path):
    """PS3.3 C.11.2.1.2.1 at slope 2, intercept -1000: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255."""
    path = dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[1000, 5], WindowWidth=[2000, 5])
    x = RAMP * 2.0 - 1000
    expected = np.clip(((x - 999.5) / 1999 + 0.5) * 255, 0, 255)
    pixels = pixels_of(path)
    assert np.abs(pixels[..., 0] - expected).max() <= 0.5
    inverted = pixels_of(
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
    assert np.array_equal(inverted, 255 - pixels)


def test_dicom_without_a_window_is_scaled_by_its_range(tmp_path):
    pixels = pixels_of(dicom(tmp_path / "a.dcm", (RAMP.astype(np.int16) - 1000)))
    assert np.array_equal(pixels[..., 0], np.rint(RAMP / 3820 * 255))


def test_dicom_colour_and_run_length_encoding_are_read(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    assert np.array_equal(pixels_of(dicom(tmp_path / "a.dcm", colours)), colours)
    path = dicom(tmp_path / "b.dcm", colours)
    data = pydicom.dcmread(path)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(path)
    assert np.array_equal(pixels_of(path), colours)


@pytest.mark.parametrize("stored", [12, 16])
def test_dicom_colour_of_more_than_8_bits_keeps_its_upper_bits(tmp_path, stored):
    colours = np.random.default_rng(0).integers(0, 2**stored, (10, 12, 3)).astype(np.uint16)
    path = dicom(tmp_path / "a.dcm", colours, BitsStored=stored, HighBit=stored - 1)
    assert np.array_equal(pixels_of(path), colours >> (stored - 8))


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_palette_is_applied(tmp_path, bits):
    """PS3.3 C.7.6.3.1.5: the descriptor is (entries, first value, bits per entry)."""
    tables = np.random.default_rng(0).integers(0, 2**bits, (3, 256)).astype(f"uint{bits}")
    tags: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    indices = RAMP // 20
    assert np.array_equal(pixels_of(dicom(tmp_path / "a.dcm", indices, **tags)), (tables >> (bits - 8)).T[indices])


def test_dicom_voi_lookup_table_is_applied(tmp_path):
    """PS3.3 C.11.2.1.1; the table has precedence over a window."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [192, 0, 16], np.arange(192, dtype=np.uint16)[::-1].tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    pixels = pixels_of(dicom(tmp_path / "a.dcm", RAMP // 20, VOILUTSequence=[table], WindowCenter=5, WindowWidth=5))
    assert np.array_equal(pixels[..., 0], np.rint((191 - RAMP // 20) / 191 * 255))


def test_dicom_monochrome1_without_a_window_is_inverted(tmp_path):
    pixels = pixels_of(dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(pixels[..., 0], 255 - np.rint(RAMP / 3820 * 255))


def test_file_with_several_frames_requires_a_frame(tmp_path):
    path = dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP[::-1]]))
    with pytest.raises(UserError, match=r"a\.dcm: the file holds 2 frames; choose one with frame=0 to frame=1"):
        read_image(path)
    assert np.array_equal(pixels_of(path, frame=1), pixels_of(path, frame=0)[::-1])
    with pytest.raises(UserError, match="no frame 2; the file holds 2"):
        read_image(path, frame=2)
    pages = [Image.new("L", (9, 9), value) for value in (10, 200)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert pixels_of(tmp_path / "a.tiff", frame=1).max() == 200
    with pytest.raises(UserError, match="holds 2 frames"):
        read_image(tmp_path / "a.tiff")


def test_dicom_tags_are_dropped(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    assert b"Secret" in path.read_bytes()
    image = read_image(path)
    assert not image.info
    assert b"Secret" not in to_png(image)


def test_hostile_files_raise_one_line_with_the_name_of_the_file(tmp_path):
    for name, (data, message) in hostile(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(data)
        error = error_text(path)
        assert error.startswith(name), name
        assert message in error, (name, error)
        assert "\n" not in error


def error_text(path: Path) -> str:
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return "no error"


def test_long_file_name_is_shortened_in_the_error(tmp_path):
    path = tmp_path / ("x" * 200 + ".png")
    path.write_bytes(b"nothing")
    assert error_text(path) == f"{'x' * 40}...{'x' * 16}.png: not a readable image; allowed are PNG, JPEG, TIFF, WEBP and DICOM files"


def test_limits_are_checked_before_decoding(tmp_path):
    (tmp_path / "a.png").write_bytes(picture("PNG", (100, 100)))
    with pytest.raises(UserError, match=r"a\.png: 100 x 100 pixels, at most 0\.005 megapixels"):
        read_image(tmp_path / "a.png", max_pixels=5000)
    with pytest.raises(UserError, match="at most 0 MiB are allowed"):
        read_image(tmp_path / "a.png", max_bytes=1000)
    path = dicom(tmp_path / "a.dcm", RAMP, Rows=30_000, Columns=30_000)
    with pytest.raises(UserError, match=r"a\.dcm: 30000 x 30000 pixels"):
        read_image(path)


def test_missing_file_or_folder_raises(tmp_path):
    with pytest.raises(UserError, match="no such image file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="not a file; give one image file"):
        read_image(tmp_path)
