import io

import numpy as np
import simplejpeg
from PIL import Image

from src.data.images import decode


def smooth(height: int, width: int) -> np.ndarray:
    """Waves and an edge: detail as an image has it, unlike noise."""
    y, x = np.mgrid[:height, :width] / 40
    waves = 128 + 60 * np.sin(x * 1.3)[..., None] * np.cos(y[..., None] + np.arange(3)) + 40 * (x > y)[..., None]
    return waves.clip(0, 255).astype(np.uint8)


def pil(data: bytes, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def test_exact_is_pil():
    data = simplejpeg.encode_jpeg(smooth(500, 640), quality=92)
    assert np.array_equal(decode(data, size=96, exact=True), pil(data, 96))


def test_the_fast_path_is_within_a_grey_level_and_a_half_of_pil():
    for height, width, size in [(500, 640, 96), (384, 384, 224), (300, 1200, 64), (50, 40, 64)]:
        data = simplejpeg.encode_jpeg(smooth(height, width), quality=92)
        assert np.abs(decode(data, size=size).astype(int) - pil(data, size)).mean() <= 1.5


def test_a_picture_that_is_decoded_whole_is_pil_but_for_rounding():
    data = simplejpeg.encode_jpeg(smooth(288, 384), quality=92)
    away = np.abs(decode(data, size=224).astype(int) - pil(data, 224))
    assert away.max() <= 2
    assert away.mean() < 0.02


def test_grey_and_other_formats_come_out_as_rgb():
    grey = simplejpeg.encode_jpeg(smooth(64, 64)[..., :1].copy(), colorspace="GRAY")
    made = decode(grey, size=32)
    assert made.shape == (3, 32, 32)
    assert made.dtype == np.uint8
    assert np.array_equal(made[0], made[1])
    png = io.BytesIO()
    Image.fromarray(smooth(32, 32)).save(png, "PNG")
    assert np.array_equal(decode(png.getvalue(), size=32), smooth(32, 32).transpose(2, 0, 1))
