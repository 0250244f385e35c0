"""The plots of the report as SVG text, drawn narrow so that they stand side by side on paper and alone on a phone."""

import math
from dataclasses import dataclass, field

from src.reporting.blocks import Graph
from src.reporting.svg import Scale, drawing, element, label, line, path, text, ticks

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 26, 38


@dataclass
class Curve:
    """Points in order of x; `band` gives (low, high) per point; `kind` is curve, thin (one of many, pale) or dots."""

    name: str
    points: list[tuple[float, float]]
    colour: str
    kind: str = "curve"
    band: list[tuple[float, float]] = field(default_factory=list)


def curves(given: list[Curve], *, title: str, x: str, y_from: float | None = None, log_x: bool = False) -> str:
    """Lines over a common pair of axes; points that are not finite are left out."""
    kept = [(curve, [point for point in curve.points if all(map(math.isfinite, point))]) for curve in given]
    xs = [px for _, points in kept for px, _ in points]
    ys = [py for _, points in kept for _, py in points] + [bound for curve, _ in kept for pair in curve.band for bound in pair]
    if not xs:
        return drawing([text(WIDTH / 2, HEIGHT / 2, "nothing logged", anchor="middle")], width=WIDTH, height=HEIGHT, title=title)
    bottom, top = _span(min(ys) if y_from is None else min(y_from, *ys), max(ys))
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log_x)
    up = Scale(bottom, top, HEIGHT - BOTTOM, TOP)
    content = _axes(across, up, title=title, x=x, x_ticks=sorted(set(xs)) if log_x else ticks(min(xs), max(xs)))
    for curve, points in kept:
        placed = [(across(px), up(py)) for px, py in points]
        if curve.band:
            content.append(_band(curve, across, up))
        if curve.kind != "dots":
            content.append(path(placed, colour=curve.colour, kind=curve.kind))
        if curve.kind == "dots" or len(placed) <= 12:
            content += [_dot(px, py, curve.colour) for px, py in placed]
    return drawing(content, width=WIDTH, height=HEIGHT, title=title)


def whiskers(graph: Graph) -> str:
    """Dots with their intervals, one below the other, as wide as a table's cell; the scale stands in the column's head."""
    width, height = 130, max(16, 8 * len(graph.marks))
    across = Scale(graph.start, graph.stop, 4, width - 4)
    content = [line(across(tick), 0, across(tick), height, kind="grid") for tick in (graph.start, graph.stop)]
    content += [line(across(0), 0, across(0), height, kind="zero")] if graph.start < 0 < graph.stop else []
    for number, (mark, colour) in enumerate(graph.marks):
        y = height * (number + 0.5) / len(graph.marks)
        low, value, high = (across(min(max(value, graph.start), graph.stop)) for value in (mark.low, mark.value, mark.high))
        content += [line(low, y, high, y, kind="whisker", style=f"stroke: var(--{colour})")]
        content += [_dot(value, y, colour, radius=3.6)]
    return drawing(content, width=width, height=height, title="; ".join(str(mark) for mark, _ in graph.marks))


def matrix(counts: list[list[int]], names: list[str], *, title: str) -> str:
    """A confusion matrix: rows are the truth, columns the answer, shaded by the share of the row."""
    cell, left, top = max(18, min(36, 240 // len(names))), 96, 44
    width, height = left + cell * len(names) + 10, top + cell * len(names) + 30
    content = [text(0, 14, title, kind="title")]
    for row, found in enumerate(counts):
        content.append(text(left - 5, top + cell * (row + 0.5) + 3, _short(names[row], 15), anchor="end"))
        for column, count in enumerate(found):
            share = count / max(sum(found), 1)
            x, y, side = float(left + cell * column), float(top + cell * row), cell - 1
            shade = f"fill-opacity: {share:.2f}"
            content.append(element("rect", class_="cell", style=shade, x=x, y=y, width=side, height=side))
            kind = "count strong" if share > 0.55 else "count"
            content.append(text(left + cell * (column + 0.5), top + cell * (row + 0.5) + 3, str(count), anchor="middle", kind=kind))
    content += [text(left + cell * (n + 0.5), top - 5, _short(name, 4), anchor="middle") for n, name in enumerate(names)]
    content.append(text(left, height - 12, "rows: true class; columns: predicted class", kind="tick"))
    return drawing(content, width=width, height=height, title=title)


def _axes(across: Scale, up: Scale, *, title: str, x: str, x_ticks: list[float]) -> list[str]:
    content = [text(0, 14, title, kind="title"), text(WIDTH - RIGHT, HEIGHT - 4, x, anchor="end", kind="axis")]
    for value in ticks(up.start, up.stop, about=4):
        content += [line(LEFT, up(value), WIDTH - RIGHT, up(value), kind="grid")]
        content += [text(LEFT - 6, up(value) + 3.5, label(value), anchor="end")]
    for value in x_ticks:
        content.append(text(across(value), HEIGHT - BOTTOM + 15, label(value), anchor="middle"))
    return content


def _band(curve: Curve, across: Scale, up: Scale) -> str:
    there = [(across(px), up(high)) for (px, _), (_, high) in zip(curve.points, curve.band, strict=True)]
    back = [(across(px), up(low)) for (px, _), (low, _) in zip(curve.points, curve.band, strict=True)]
    corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in there + back[::-1])
    return element("polygon", points=corners, class_="band", style=f"fill: var(--{curve.colour})")


def _dot(x: float, y: float, colour: str, *, radius: float = 2.6) -> str:
    return element("circle", cx=float(x), cy=float(y), r=radius, style=f"fill: var(--{colour})")


def _span(low: float, high: float) -> tuple[float, float]:
    flat = high - low <= 1e-9 * abs(high)
    margin = (0.1 * abs(high) or 0.1) if flat else 0.06 * (high - low)
    return (low if low == 0 else low - margin), high + margin


def _short(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "\u2026"
