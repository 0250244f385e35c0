"""Whatever a dataset calls an image comes out as the RGB JPEG that a viewer would show."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.build.encode import InvalidImage, encode_image, perceptual_hash
from src.data.image_conversion import MAX_PIXELS

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def halves(left: tuple = RED, right: tuple = BLUE, *, width: int = 64, height: int = 32) -> Image.Image:
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return Image.fromarray(pixels)


def shown(data: bytes, *, max_side: int = 384) -> np.ndarray:
    encoded = encode_image(data, max_side=max_side, quality=95)
    return simplejpeg.decode_jpeg(encoded.jpeg, colorspace="RGB").astype(int)


def assert_halves(pixels: np.ndarray, left: tuple = RED, right: tuple = BLUE) -> None:
    quarter = pixels.shape[1] // 4
    np.testing.assert_allclose(pixels[:, :quarter].mean((0, 1)), left, atol=6)
    np.testing.assert_allclose(pixels[:, -quarter:].mean((0, 1)), right, atol=6)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "JPEG2000"])
def test_formats(format):
    assert_halves(shown(saved(halves(), format)))


def test_lossless_webp():
    assert_halves(shown(saved(halves(), "WEBP", lossless=True)))


def test_palette_and_first_frame_of_an_animation():
    frames = [halves().convert("P"), halves(BLUE, RED).convert("P")]
    assert_halves(shown(saved(frames[0])))
    assert_halves(shown(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))


def test_transparency_becomes_white():
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    assert_halves(shown(saved(image)), right=WHITE)
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    assert_halves(shown(saved(palette, transparency=palette.getpixel((60, 5)))), right=WHITE)


def test_16_bit_grey_is_scaled_by_its_own_range():
    pixels = np.full((32, 64), 1000, np.uint16)
    pixels[:, 32:] = 3000
    assert_halves(shown(saved(Image.fromarray(pixels))), left=(0, 0, 0), right=WHITE)


def test_cmyk_with_and_without_an_adobe_marker():
    cmyk = halves().convert("CMYK")
    adobe = saved(cmyk, "JPEG", quality=95)
    assert b"Adobe" in adobe
    assert_halves(shown(adobe))
    at = adobe.index(b"\xff\xee")  # Pillow stores the complement and says so in this segment; without it values are ink
    plain = adobe[:at] + adobe[at + 2 + struct.unpack(">H", adobe[at + 2 : at + 4])[0] :]
    expected = Image.fromarray(255 - np.asarray(cmyk), "CMYK").convert("RGB")
    np.testing.assert_allclose(shown(plain).mean((0, 1)), np.asarray(expected, int).mean((0, 1)), atol=8)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(halves(), format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    mirrored, turned = orientation in (2, 3, 7, 8), orientation >= 5
    pixels = shown(data)
    pixels = pixels.transpose(1, 0, 2) if turned else pixels
    assert_halves(pixels, *((BLUE, RED) if mirrored else (RED, BLUE)))
    assert b"Exif" not in encode_image(data, max_side=384, quality=90).jpeg


def test_a_small_rgb_jpeg_keeps_its_pixel_data_and_loses_its_metadata():
    exif = Image.Exif()
    exif[0x010E] = "name of a patient"
    data = saved(halves(), "JPEG", quality=77, exif=exif, comment=b"born 1950", icc_profile=b"profile")
    encoded = encode_image(data, max_side=64, quality=90)
    assert encoded.jpeg.endswith(data[data.index(b"\xff\xda") :])
    assert not any(word in encoded.jpeg for word in (b"patient", b"1950", b"profile"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded.jpeg))), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(500, 300), (300, 500), (385, 20), (1023, 767)])
def test_the_longer_side_is_bounded_and_the_shape_kept(mode, size):
    image = Image.effect_noise(size, 40).convert(mode)
    encoded = encode_image(saved(image, "JPEG"), max_side=384, quality=90)
    assert (encoded.width, encoded.height) == size
    width, height = Image.open(io.BytesIO(encoded.jpeg)).size
    assert max(width, height) == 384
    assert abs(width / height - size[0] / size[1]) < 0.03 * size[0] / size[1]


def test_grey_becomes_rgb():
    assert Image.open(io.BytesIO(encode_image(saved(Image.new("L", (40, 30), 99), "JPEG"), max_side=64, quality=90).jpeg)).mode == "RGB"


def test_scaled_decoding_gives_the_picture_that_full_decoding_gives():
    y, x = np.mgrid[:768, :1024]
    pixels = np.stack([128 + 90 * np.sin(x / 37), 128 + 90 * np.sin(y / 23), 128 + 90 * np.cos((x + y) / 51)], -1).astype(np.uint8)
    data = saved(Image.fromarray(pixels), "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((384, 288), Image.Resampling.BICUBIC), float)
    difference = shown(data) - full
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 35  # dB


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "not an image that can be read"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (lambda: b"plain text", "not an image that can be read"),
        (lambda: saved(Image.new("RGB", (1, 1))), "image of less than 8 pixels: 1 x 1"),
        (lambda: saved(Image.new("RGB", (1, 1)), "JPEG"), "image of less than 8 pixels: 1 x 1"),
        (lambda: saved(Image.new("RGB", (400, 3)), "JPEG"), "image of less than 8 pixels: 400 x 3"),
    ],
)
def test_what_is_no_usable_image(make, reason):
    with pytest.raises(InvalidImage) as error:
        encode_image(make(), max_side=384, quality=90)
    assert str(error.value) == reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_truncated_image_is_refused(format, kept):
    data = saved(Image.effect_noise((96, 96), 60).convert("RGB"), format)
    with pytest.raises(InvalidImage, match=r"truncated|broken|not an image"):
        encode_image(data[: int(len(data) * kept)], max_side=384, quality=90)


def test_a_header_of_3600_megapixels_is_refused_before_decoding():
    png = bytearray(saved(Image.new("L", (16, 16))))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    with pytest.raises(InvalidImage, match=f"more than {MAX_PIXELS // 1_000_000} megapixels"):
        encode_image(bytes(png), max_side=384, quality=90)
    jpeg = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(InvalidImage, match="megapixels"):
        encode_image(bytes(jpeg), max_side=384, quality=90)


def test_the_hash_survives_reencoding_and_scaling_and_tells_pictures_apart():
    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(0, 256, (7, 9), np.uint8)).resize((360, 280), Image.Resampling.BICUBIC) for _ in range(20)]
    hashes = [perceptual_hash(image) for image in smooth]
    for image, known in zip(smooth, hashes, strict=True):
        again = Image.open(io.BytesIO(saved(image.resize((180, 140)), "JPEG", quality=60)))
        assert (perceptual_hash(again) ^ known).bit_count() <= 6
    apart = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(apart) > 12
    assert encode_image(saved(smooth[0]), max_side=384, quality=90).hash == hashes[0]


def test_a_blank_picture_has_a_hash_that_is_not_that_of_no_picture():
    assert perceptual_hash(Image.new("RGB", (50, 50))) != 0
