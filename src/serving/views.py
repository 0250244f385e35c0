"""What the page shows of a computation: pictures and small pieces of HTML. Text of visitors and models is always escaped."""

import base64
import html
import math

import numpy as np
from PIL import Image

from src.data.image_io import to_png
from src.inference.occlusion import Occlusion

ORANGE, BLUE = np.array([230, 97, 1]), np.array([33, 102, 172])  # readable with any colour vision
FAINT = 0.1  # nats; below this no tile matters


def overlay(image: Image.Image, occlusion: Occlusion) -> Image.Image:
    """The grey picture under its tiles: orange where hiding made the answer less likely, blue where more likely."""
    image = image.copy()
    image.thumbnail((768, 768))
    scale = 768 / max(image.size)
    if scale > 1.5:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    base = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64) * 0.85
    drops_GG = occlusion.drops_GG
    strength_GG = drops_GG / max(np.abs(drops_GG).max(), math.log(2))  # full colour from a factor of 2 on
    big = np.asarray(Image.fromarray(strength_GG.astype(np.float32)).resize(image.size, Image.Resampling.NEAREST))
    alpha = 0.75 * np.abs(big)[..., None]
    mixed = base * (1 - alpha) + np.where(big[..., None] > 0, ORANGE, BLUE) * alpha
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def legend(occlusion: Occlusion, answer: str) -> str:
    side, drops = len(occlusion.drops_GG), occlusion.drops_GG
    most = float(drops.max())
    if np.abs(drops).max() < FAINT:
        said = "<b>No single tile mattered.</b> Hiding any of them left the answer as likely as before: it was not read from one place."
    else:
        times = "more than 100" if most > math.log(100) else f"up to {math.exp(max(most, 0)):.1f}"
        said = (
            f"<span class='key orange'></span> hiding this made the answer less likely, {times} times"
            "<br><span class='key blue'></span> hiding this made it more likely"
        )
    return (
        f"<div class='note'><p>Each of the {side} x {side} tiles was hidden in turn and the answer <q>{html.escape(answer)}</q> scored "
        f"again (occlusion).</p><p>{said}</p><p>It shows what this answer depends on, not where a finding is.</p></div>"
    )


def certainty(log_probability: float, tokens: int) -> str:
    """The geometric mean of the tokens' probabilities, in words that do not promise more."""
    return f"{100 * math.exp(log_probability / max(tokens, 1)):.0f}% per token"


def comparison(image: Image.Image, seen: tuple[str, str, str], blank: tuple[str, str, str], *, same: bool) -> str:
    """Two cards: the answer with the picture and with a blank one; each is (answer, its certainty, that of the first answer)."""
    grey = Image.new("RGB", (160, 160), (122, 116, 104))
    cards = [_card("With the image", image, *seen), _card("Image blanked", grey, *blank)]
    verdict = (
        "<b>Same answer without the image.</b> Here the model relied on the question alone."
        if same
        else "<b>The answer changed.</b> Here the image mattered."
    )
    return f"<div class='cards'>{''.join(cards)}</div><p class='note'>{verdict}</p>"


def _card(title: str, image: Image.Image, answer: str, certain: str, first: str) -> str:
    small = image.copy()
    small.thumbnail((160, 160))
    data = base64.b64encode(to_png(small)).decode()
    return (
        f"<div class='card'><h4>{title}</h4><img alt='{title.lower()}' src='data:image/png;base64,{data}'><div class='said'>"
        f"{html.escape(answer) or '(empty answer)'}</div><div class='small'>confidence {certain}{first}</div></div>"
    )
