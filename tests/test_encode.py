"""Images of all allowed formats are encoded as the RGB JPEG that an image viewer would show."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.build.encode import InvalidImage, encode_image
from src.data.image_conversion import MAX_PIXELS
from src.data.near_duplicates import perceptual_hash

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def image_bytes(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def halves(left: tuple = RED, right: tuple = BLUE, *, width: int = 64, height: int = 32) -> Image.Image:
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return Image.fromarray(pixels)


def decode_encoded(data: bytes, *, max_side: int = 384) -> np.ndarray:
    encoded = encode_image(data, max_side=max_side, quality=95)
    return simplejpeg.decode_jpeg(encoded.jpeg, colorspace="RGB").astype(int)


def assert_halves(pixels: np.ndarray, left: tuple = RED, right: tuple = BLUE) -> None:
    quarter = pixels.shape[1] // 4
    np.testing.assert_allclose(pixels[:, :quarter].mean((0, 1)), left, atol=6)
    np.testing.assert_allclose(pixels[:, -quarter:].mean((0, 1)), right, atol=6)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "JPEG2000"])
def test_lossless_and_lossy_formats_keep_colours(format):
    assert_halves(decode_encoded(image_bytes(halves(), format)))


def test_lossless_webp_keeps_colours():
    assert_halves(decode_encoded(image_bytes(halves(), "WEBP", lossless=True)))


def test_palette_and_first_animation_frame_are_decoded():
    frames = [halves().convert("P"), halves(BLUE, RED).convert("P")]
    assert_halves(decode_encoded(image_bytes(frames[0])))
    assert_halves(decode_encoded(image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])))


def test_transparency_becomes_white():
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    assert_halves(decode_encoded(image_bytes(image)), right=WHITE)
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    assert_halves(decode_encoded(image_bytes(palette, transparency=palette.getpixel((60, 5)))), right=WHITE)


def test_16_bit_grey_is_scaled_by_its_value_range():
    pixels = np.full((32, 64), 1000, np.uint16)
    pixels[:, 32:] = 3000
    assert_halves(decode_encoded(image_bytes(Image.fromarray(pixels))), left=(0, 0, 0), right=WHITE)


def test_cmyk_is_converted_with_and_without_adobe_marker():
    cmyk = halves().convert("CMYK")
    adobe = image_bytes(cmyk, "JPEG", quality=95)
    assert b"Adobe" in adobe
    assert_halves(decode_encoded(adobe))
    at = adobe.index(b"\xff\xee")  # Pillow stores inverted values and marks it here; without the marker, values are ink
    plain = adobe[:at] + adobe[at + 2 + struct.unpack(">H", adobe[at + 2 : at + 4])[0] :]
    expected = Image.fromarray(255 - np.asarray(cmyk), "CMYK").convert("RGB")
    np.testing.assert_allclose(decode_encoded(plain).mean((0, 1)), np.asarray(expected, int).mean((0, 1)), atol=8)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[274] = orientation
    data = image_bytes(halves(), format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    mirrored, transposed = orientation in (2, 3, 7, 8), orientation >= 5
    pixels = decode_encoded(data)
    pixels = pixels.transpose(1, 0, 2) if transposed else pixels
    assert_halves(pixels, *((BLUE, RED) if mirrored else (RED, BLUE)))
    assert b"Exif" not in encode_image(data, max_side=384, quality=90).jpeg


def test_small_rgb_jpeg_keeps_pixel_data_and_loses_metadata():
    exif = Image.Exif()
    exif[0x010E] = "name of a patient"
    data = image_bytes(halves(), "JPEG", quality=77, exif=exif, comment=b"born 1950", icc_profile=b"profile")
    encoded = encode_image(data, max_side=64, quality=90)
    assert encoded.jpeg.endswith(data[data.index(b"\xff\xda") :])
    assert not any(word in encoded.jpeg for word in (b"patient", b"1950", b"profile"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded.jpeg))), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(500, 300), (300, 500), (385, 20), (1023, 767)])
def test_longer_side_is_bounded_and_aspect_ratio_kept(mode, size):
    image = Image.effect_noise(size, 40).convert(mode)
    encoded = encode_image(image_bytes(image, "JPEG"), max_side=384, quality=90)
    assert (encoded.width, encoded.height) == size
    width, height = Image.open(io.BytesIO(encoded.jpeg)).size
    assert max(width, height) == 384
    assert abs(width / height - size[0] / size[1]) < 0.03 * size[0] / size[1]


def test_grey_becomes_rgb():
    assert (
        Image.open(io.BytesIO(encode_image(image_bytes(Image.new("L", (40, 30), 99), "JPEG"), max_side=64, quality=90).jpeg)).mode == "RGB"
    )


def test_scaled_decoding_matches_full_decoding():
    y, x = np.mgrid[:768, :1024]
    pixels = np.stack([128 + 90 * np.sin(x / 37), 128 + 90 * np.sin(y / 23), 128 + 90 * np.cos((x + y) / 51)], -1).astype(np.uint8)
    data = image_bytes(Image.fromarray(pixels), "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((384, 288), Image.Resampling.BICUBIC), float)
    difference = decode_encoded(data) - full
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 35  # dB


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "not an image that can be read"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (lambda: b"plain text", "not an image that can be read"),
        (lambda: image_bytes(Image.new("RGB", (1, 1))), "image of less than 8 pixels: 1 x 1"),
        (lambda: image_bytes(Image.new("RGB", (1, 1)), "JPEG"), "image of less than 8 pixels: 1 x 1"),
        (lambda: image_bytes(Image.new("RGB", (400, 3)), "JPEG"), "image of less than 8 pixels: 400 x 3"),
    ],
)
def test_unusable_images_are_rejected_with_reason(make, reason):
    with pytest.raises(InvalidImage) as error:
        encode_image(make(), max_side=384, quality=90)
    assert str(error.value) == reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF"])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_truncated_images_are_rejected(format, fraction):
    data = image_bytes(Image.effect_noise((96, 96), 60).convert("RGB"), format)
    with pytest.raises(InvalidImage, match=r"truncated|broken|not an image"):
        encode_image(data[: int(len(data) * fraction)], max_side=384, quality=90)


def test_header_of_3600_megapixels_is_rejected_before_decoding():
    png = bytearray(image_bytes(Image.new("L", (16, 16))))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    with pytest.raises(InvalidImage, match=f"more than {MAX_PIXELS // 1_000_000} megapixels"):
        encode_image(bytes(png), max_side=384, quality=90)
    jpeg = bytearray(image_bytes(Image.new("RGB", (16, 16)), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(InvalidImage, match="megapixels"):
        encode_image(bytes(jpeg), max_side=384, quality=90)


def test_hash_is_robust_to_reencoding_and_distinguishes_images():
    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(0, 256, (7, 9), np.uint8)).resize((360, 280), Image.Resampling.BICUBIC) for _ in range(20)]
    hashes = [perceptual_hash(image) for image in smooth]
    for image, expected in zip(smooth, hashes, strict=True):
        reencoded = Image.open(io.BytesIO(image_bytes(image.resize((180, 140)), "JPEG", quality=60)))
        assert (perceptual_hash(reencoded) ^ expected).bit_count() <= 6
    distances = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(distances) > 12
    assert encode_image(image_bytes(smooth[0]), max_side=384, quality=90).hash == hashes[0]


def test_blank_image_has_a_nonzero_hash():
    assert perceptual_hash(Image.new("RGB", (50, 50))) != 0
