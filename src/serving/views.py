"""Images and HTML fragments of the demo page. Text of visitors and models is always escaped."""

import base64
import html
import math

import numpy as np
from PIL import Image

from src.data.image_io import to_png
from src.inference.occlusion import Occlusion

ORANGE, BLUE = np.array([230, 97, 1]), np.array([33, 102, 172])  # distinguishable with every colour vision
MIN_EFFECT = 0.1  # nats; a smaller change of the log-probability counts as no effect


def overlay(image: Image.Image, occlusion: Occlusion) -> Image.Image:
    """The greyscale image under the tiles: orange if hiding the tile made the answer less likely, blue if more likely."""
    image = image.copy()
    image.thumbnail((768, 768))
    scale = 768 / max(image.size)
    if scale > 1.5:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    grey_HW3 = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64) * 0.85
    drops_GG = occlusion.drops_GG
    strength_GG = drops_GG / max(np.abs(drops_GG).max(), math.log(2))  # full colour for a factor of 2 or more
    strength_HW = np.asarray(Image.fromarray(strength_GG.astype(np.float32)).resize(image.size, Image.Resampling.NEAREST))
    alpha_HW1 = 0.75 * np.abs(strength_HW)[..., None]
    blended_HW3 = grey_HW3 * (1 - alpha_HW1) + np.where(strength_HW[..., None] > 0, ORANGE, BLUE) * alpha_HW1
    return Image.fromarray(np.clip(blended_HW3, 0, 255).astype(np.uint8))


def legend(occlusion: Occlusion, answer: str) -> str:
    tiles, drops = len(occlusion.drops_GG), occlusion.drops_GG
    largest = float(drops.max())
    if np.abs(drops).max() < MIN_EFFECT:
        result = (
            "<b>No single tile mattered.</b> With any one tile hidden, the answer was as likely as before, so it does not depend on one "
            "place in the image."
        )
    else:
        factor = "more than 100" if largest > math.log(100) else f"up to {math.exp(max(largest, 0)):.1f}"
        result = (
            f"<span class='key orange'></span> hiding this tile made the answer less likely, by a factor of {factor}"
            "<br><span class='key blue'></span> hiding this tile made it more likely"
        )
    return (
        f"<div class='note'><p>Each of the {tiles} x {tiles} tiles was hidden in turn, and the answer <q>{html.escape(answer)}</q> was "
        f"scored again (occlusion).</p><p>{result}</p><p>The map shows what this answer depends on, not where a finding is.</p></div>"
    )


def confidence(log_probability: float, tokens: int) -> str:
    """The geometric mean of the token probabilities."""
    return f"{100 * math.exp(log_probability / max(tokens, 1)):.0f}% per token"


def comparison(image: Image.Image, with_image: tuple[str, str, str], blank: tuple[str, str, str], *, same: bool) -> str:
    """Two cards, with the image and with a blank one. Each tuple is (answer, its confidence, HTML note)."""
    grey = Image.new("RGB", (160, 160), (122, 116, 104))
    cards = [_card("With the image", image, *with_image), _card("Image blanked", grey, *blank)]
    verdict = (
        "<b>Same answer without the image.</b> The model answered from the question alone."
        if same
        else "<b>Different answer without the image.</b> The answer depends on the image."
    )
    return f"<div class='cards'>{''.join(cards)}</div><p class='note'>{verdict}</p>"


def _card(title: str, image: Image.Image, answer: str, answer_confidence: str, note: str) -> str:
    thumbnail = image.copy()
    thumbnail.thumbnail((160, 160))
    data = base64.b64encode(to_png(thumbnail)).decode()
    return (
        f"<div class='card'><h4>{title}</h4><img alt='{title.lower()}' src='data:image/png;base64,{data}'><div class='answer'>"
        f"{html.escape(answer) or '(empty answer)'}</div><div class='small'>confidence {answer_confidence}{note}</div></div>"
    )
