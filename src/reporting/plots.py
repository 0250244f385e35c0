"""Plots of the report as SVG text. Colours are CSS variables of the page, so that plots follow its light or dark theme.

A plot is narrow enough for two to fit side by side on paper and for one to fit on a phone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from src.reporting.blocks import Graph

# The palette of Okabe and Ito, readable with every common colour blindness. page.css has the values for light and dark.
COLOURS = ("blue", "orange", "green", "vermilion", "sky", "purple", "yellow", "grey")
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 26, 38


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def is_dashed(index: int) -> bool:
    """Whether a line reuses the colour of an earlier one and is dashed to differ from it."""
    return index // len(COLOURS) % 2 == 1


def legend(colours: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of label and colour; dashed lines are marked in the label."""
    return [(f"{name} (dashed)" if is_dashed(index) else name, value) for index, (name, value) in enumerate(colours.items())]


@dataclass
class Curve:
    """Points in order of x. `band` holds (low, high) per point. `kind` is curve, thin (one of many), dashed variants, or dots."""

    name: str
    points: list[tuple[float, float]]
    colour: str
    kind: str = "curve"
    band: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """Maps values from `start`..`stop` to pixels, linearly or logarithmically."""

    start: float
    stop: float
    pixel_start: float
    pixel_stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        start, stop, value = (math.log(v) if self.log else v for v in (self.start, self.stop, value))
        fraction = (value - start) / (stop - start) if stop != start else 0.5
        return self.pixel_start + fraction * (self.pixel_stop - self.pixel_start)


def plot_curves(curves: list[Curve], *, title: str, x: str, y_from: float | None = None, log_x: bool = False) -> str:
    """Draws curves on common axes. Points that are not finite are left out."""
    finite = [(curve, [point for point in curve.points if all(map(math.isfinite, point))]) for curve in curves]
    xs = [px for _, points in finite for px, _ in points]
    ys = [py for _, points in finite for _, py in points] + [bound for curve, _ in finite for bounds in curve.band for bound in bounds]
    if not xs:
        return _svg([_text(WIDTH / 2, HEIGHT / 2, "no values logged", anchor="middle")], width=WIDTH, height=HEIGHT, title=title)
    bottom, top = _padded_range(min(ys) if y_from is None else min(y_from, *ys), max(ys))
    x_scale = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log_x)
    y_scale = Scale(bottom, top, HEIGHT - BOTTOM, TOP)
    content = _axes(x_scale, y_scale, title=title, x=x, x_ticks=sorted(set(xs)) if log_x else ticks(min(xs), max(xs)))
    for curve, points in finite:
        pixels = [(x_scale(px), y_scale(py)) for px, py in points]
        if curve.band:
            content.append(_band(curve, x_scale, y_scale))
        if curve.kind != "dots":
            content.append(_path(pixels, colour=curve.colour, kind=curve.kind))
        if curve.kind == "dots" or len(pixels) <= 12:
            content += [_dot(px, py, curve.colour) for px, py in pixels]
    return _svg(content, width=WIDTH, height=HEIGHT, title=title)


def plot_intervals(graph: Graph) -> str:
    """Draws intervals one below the other, to fit a table cell. The column head names the scale."""
    width, height = 130, max(16, 8 * len(graph.marks))
    scale = Scale(graph.start, graph.stop, 4, width - 4)
    content = [_line(scale(tick), 0, scale(tick), height, kind="grid") for tick in (graph.start, graph.stop)]
    content += [_line(scale(0), 0, scale(0), height, kind="zero")] if graph.start < 0 < graph.stop else []
    for index, (mark, mark_colour) in enumerate(graph.marks):
        y = height * (index + 0.5) / len(graph.marks)
        low, value, high = (scale(min(max(value, graph.start), graph.stop)) for value in (mark.low, mark.value, mark.high))
        content += [_line(low, y, high, y, kind="whisker", style=f"stroke: var(--{mark_colour})")]
        content += [_dot(value, y, mark_colour, radius=3.6)]
    return _svg(content, width=width, height=height, title="; ".join(str(mark) for mark, _ in graph.marks))


def plot_confusion_matrix(counts: list[list[int]], names: list[str], *, title: str) -> str:
    """Rows are true classes, columns predicted classes. The shade is the fraction of the row."""
    cell, left, top = max(18, min(36, 240 // len(names))), 96, 44
    width, height = left + cell * len(names) + 10, top + cell * len(names) + 30
    content = [_text(0, 14, title, kind="title")]
    for row, row_counts in enumerate(counts):
        content.append(_text(left - 5, top + cell * (row + 0.5) + 3, _truncate(names[row], 15), anchor="end"))
        for column, count in enumerate(row_counts):
            fraction = count / max(sum(row_counts), 1)
            x, y, side = float(left + cell * column), float(top + cell * row), cell - 1
            content.append(_element("rect", class_="cell", style=f"fill-opacity: {fraction:.2f}", x=x, y=y, width=side, height=side))
            kind = "count strong" if fraction > 0.55 else "count"
            content.append(_text(left + cell * (column + 0.5), top + cell * (row + 0.5) + 3, str(count), anchor="middle", kind=kind))
    content += [_text(left + cell * (n + 0.5), top - 5, _truncate(name, 4), anchor="middle") for n, name in enumerate(names)]
    content.append(_text(left, height - 12, "rows: true class; columns: predicted class"))
    return _svg(content, width=width, height=height, title=title)


def ticks(start: float, stop: float, *, about: int = 5) -> list[float]:
    """Round numbers between start and stop, including either end if it is round."""
    if stop <= start:
        return [start]
    rough = (stop - start) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(start / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(stop / step + 1e-9) + 1)]


def _axes(x_scale: Scale, y_scale: Scale, *, title: str, x: str, x_ticks: list[float]) -> list[str]:
    content = [_text(0, 14, title, kind="title"), _text(WIDTH - RIGHT, HEIGHT - 4, x, anchor="end", kind="axis")]
    for value in ticks(y_scale.start, y_scale.stop, about=4):
        content += [_line(LEFT, y_scale(value), WIDTH - RIGHT, y_scale(value), kind="grid")]
        content += [_text(LEFT - 6, y_scale(value) + 3.5, _tick_label(value), anchor="end")]
    for value in x_ticks:
        content.append(_text(x_scale(value), HEIGHT - BOTTOM + 15, _tick_label(value), anchor="middle"))
    return content


def _padded_range(low: float, high: float) -> tuple[float, float]:
    is_flat = high - low <= 1e-9 * abs(high)
    margin = (0.1 * abs(high) or 0.1) if is_flat else 0.06 * (high - low)
    return (low if low == 0 else low - margin), high + margin


def _tick_label(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


def _truncate(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def _svg(content: list[str], *, width: int, height: int, title: str) -> str:
    return _element("svg", _element("title", escape(title)) + "".join(content), viewBox=f"0 0 {width} {height}", role="img")


def _element(name: str, content: str = "", **attributes) -> str:
    """`<name a="1">content</name>`. `class_` becomes class, `stroke_width` becomes stroke-width, floats get one decimal."""
    parts = []
    for key, value in attributes.items():
        text = f"{value:.1f}" if isinstance(value, float) else escape(str(value))
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    return f"<{name}{''.join(parts)}>{content}</{name}>"


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick") -> str:
    return _element("text", escape(text), x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def _line(x1: float, y1: float, x2: float, y2: float, *, kind: str, **attributes) -> str:
    return _element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind, **attributes)


def _path(points: Iterable[tuple[float, float]], *, colour: str, kind: str) -> str:
    steps = " ".join(f"{'M' if n == 0 else 'L'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return _element("path", d=steps, class_=kind, style=f"stroke: var(--{colour})")


def _band(curve: Curve, x_scale: Scale, y_scale: Scale) -> str:
    upper = [(x_scale(px), y_scale(high)) for (px, _), (_, high) in zip(curve.points, curve.band, strict=True)]
    lower = [(x_scale(px), y_scale(low)) for (px, _), (low, _) in zip(curve.points, curve.band, strict=True)]
    corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in upper + lower[::-1])
    return _element("polygon", points=corners, class_="band", style=f"fill: var(--{curve.colour})")


def _dot(x: float, y: float, colour: str, *, radius: float = 2.6) -> str:
    return _element("circle", cx=float(x), cy=float(y), r=radius, style=f"fill: var(--{colour})")
