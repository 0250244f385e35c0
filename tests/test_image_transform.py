import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageChops

from data_prep.audit.evaluation_sets import _open_raw
from data_prep.build.encode import encode_image
from src.classification.dataset import image_to_pixels
from src.data.image_io import read_image
from src.data.image_transform import decode_image


def smooth(height: int, width: int) -> np.ndarray:
    """Waves and an edge, which resemble an image more than noise does."""
    y, x = np.mgrid[:height, :width] / 40
    waves = 128 + 60 * np.sin(x * 1.3)[..., None] * np.cos(y[..., None] + np.arange(3)) + 40 * (x > y)[..., None]
    return waves.clip(0, 255).astype(np.uint8)


def pil(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def test_exact_decoding_equals_pillow():
    data = simplejpeg.encode_jpeg(smooth(500, 640), quality=92)
    assert np.array_equal(decode_image(data, size=96, exact=True), pil(data, 96))


def test_fast_decoding_differs_from_pillow_by_at_most_1_5_grey_levels():
    for height, width, size in [(500, 640, 96), (384, 384, 224), (300, 1200, 64), (50, 40, 64)]:
        data = simplejpeg.encode_jpeg(smooth(height, width), quality=92)
        assert np.abs(decode_image(data, size=size).astype(int) - pil(data, size)).mean() <= 1.5


def test_full_size_decoding_equals_pillow_except_for_rounding():
    data = simplejpeg.encode_jpeg(smooth(288, 384), quality=92)
    difference = np.abs(decode_image(data, size=224).astype(int) - pil(data, 224))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


def test_grey_and_other_formats_become_rgb():
    grey = simplejpeg.encode_jpeg(smooth(64, 64)[..., :1].copy(), colorspace="GRAY")
    pixels = decode_image(grey, size=32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], pixels[1])
    png = io.BytesIO()
    Image.fromarray(smooth(32, 32)).save(png, "PNG")
    assert np.array_equal(decode_image(png.getvalue(), size=32), smooth(32, 32).transpose(2, 0, 1))


def file_of(image: Image.Image, kind: str, *, orientation: int | None = 1, **options) -> bytes:
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **options)
    return out.getvalue()


def unusual_files() -> dict[str, bytes]:
    """Files for which `Image.open(file).convert("RGB")` gives other pixels."""
    picture = Image.fromarray(smooth(64, 96))
    deep = Image.fromarray(smooth(64, 96)[..., 0].astype(np.uint16) * 16)  # 12 bits, as in a CT
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(smooth(64, 96)[..., 1]))
    palette = picture.quantize(2)
    files = {"12 bits.png": file_of(deep, "PNG"), "12 bits.tif": file_of(deep, "TIFF")}
    files |= {"float.tif": file_of(Image.fromarray(smooth(64, 96)[..., 0] / np.float32(1000)), "TIFF")}
    files |= {f"rotated {n}.jpg": file_of(picture, "JPEG", orientation=n, quality=95) for n in range(2, 9)}
    files |= {"rotated.png": file_of(picture, "PNG", orientation=6), "rotated.webp": file_of(picture, "WEBP", orientation=8, lossless=True)}
    files |= {"rotated by XMP.jpg": file_of(picture, "JPEG", orientation=None, quality=95, xmp=b'<rdf tiff:Orientation="6"/>')}
    files |= {"alpha.png": file_of(clear, "PNG"), "palette.png": file_of(palette, "PNG", transparency=1)}
    adobe = file_of(ImageChops.invert(picture.convert("CMYK")), "JPEG", quality=95)  # Pillow inverts once more
    at = adobe.index(b"\xff\xee")  # the segment that marks the values as inverted
    return files | {"cmyk.jpg": adobe[:at] + adobe[at + 2 + int.from_bytes(adobe[at + 2 : at + 4]) :]}


@pytest.mark.parametrize("name", unusual_files())
def test_transfer_audit_and_ask_read_the_pixels_of_the_shards(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(unusual_files()[name])
    shard = decode_image(encode_image(path.read_bytes(), max_side=384, quality=95).jpeg, size=32, exact=True).astype(int)
    audit = np.asarray(_open_raw(path))
    assert np.array_equal(audit, np.asarray(read_image(path)))
    expected = np.asarray(Image.fromarray(audit).resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(image_to_pixels(path, size=32), expected)
    assert np.abs(shard - expected).mean() < 1.5  # of 255; the shard holds a JPEG file with subsampled colours
    naive = pil(path.read_bytes(), 32)
    assert np.abs(naive - expected.astype(int)).mean() > 15


def test_arrays_of_16_bits_are_scaled_like_files(tmp_path):
    deep = smooth(64, 96)[..., 0].astype(np.uint16) * 16
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(image_to_pixels(deep, size=32), image_to_pixels(tmp_path / "a.png", size=32))
    assert np.array_equal(np.asarray(_open_raw(deep)), np.asarray(_open_raw(tmp_path / "a.png")))


@pytest.mark.parametrize(
    ("kind", "at", "damage", "size"),
    [
        ("JPEG", 0, b"nonsense", (96, 64)),  # the orientation cannot be read
        ("PNG", 0, b"nonsense", (96, 64)),
        ("JPEG", 11, b"\0", (64, 96)),  # the type of another tag: the orientation can be read
    ],
)
def test_image_with_damaged_exif_data_is_read(tmp_path, kind, at, damage, size):
    exif = Image.Exif()
    exif[270], exif[274] = "title", 6
    data = bytearray(exif.tobytes())
    data[6 + at : 6 + at + len(damage)] = damage
    path = tmp_path / "a"
    Image.fromarray(smooth(64, 96)).save(path, kind, exif=bytes(data))
    encoded = encode_image(path.read_bytes(), max_side=384, quality=95)
    assert (encoded.width, encoded.height) == read_image(path).size == size
    assert np.abs(image_to_pixels(path, size=32).astype(int) - decode_image(encoded.jpeg, size=32)).mean() < 1.5
