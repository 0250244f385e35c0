"""Scales, ticks and marks: the little that the plots need of SVG. Colours are CSS variables of the page, so plots follow its theme."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

# Okabe and Ito's palette, told apart with every common colour blindness; page.css gives the values for light and dark.
COLOURS = ("blue", "orange", "green", "vermilion", "sky", "purple", "yellow", "grey")


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def dashed(number: int) -> bool:
    """There are more things than colours: the line of this one is dashed."""
    return number // len(COLOURS) % 2 == 1


@dataclass(frozen=True)
class Scale:
    """Maps values start..stop to pixels from..to, linearly or by logarithm."""

    start: float
    stop: float
    pixel_start: float
    pixel_stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        start, stop, value = (math.log(v) if self.log else v for v in (self.start, self.stop, value))
        share = (value - start) / (stop - start) if stop != start else 0.5
        return self.pixel_start + share * (self.pixel_stop - self.pixel_start)


def ticks(start: float, stop: float, *, about: int = 5) -> list[float]:
    """Round numbers between start and stop, both ends included where they are round themselves."""
    if stop <= start:
        return [start]
    rough = (stop - start) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(start / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(stop / step + 1e-9) + 1)]


def label(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


def element(name: str, content: str = "", **attributes) -> str:
    """`<name a="1">content</name>`; `class_` becomes class, `stroke_width` stroke-width, floats get one decimal."""
    parts = []
    for key, value in attributes.items():
        shown = f"{value:.1f}" if isinstance(value, float) else escape(str(value))
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{shown}"')
    return f"<{name}{''.join(parts)}>{content}</{name}>"


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "tick", **more) -> str:
    return element("text", escape(words), x=float(x), y=float(y), text_anchor=anchor, class_=kind, **more)


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str, **more) -> str:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind, **more)


def path(points: Iterable[tuple[float, float]], *, colour: str, kind: str = "curve") -> str:
    steps = " ".join(f"{'M' if n == 0 else 'L'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return element("path", d=steps, class_=kind, style=f"stroke: var(--{colour})")


def drawing(content: list[str], *, width: int, height: int, title: str) -> str:
    return element("svg", element("title", escape(title)) + "".join(content), viewBox=f"0 0 {width} {height}", role="img")
