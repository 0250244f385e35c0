"""Plots are well-formed SVG, stay inside their frame, and place values correctly."""

import math
from xml.etree import ElementTree

import pytest

from src.reporting.blocks import Graph, Interval
from src.reporting.plots import COLOURS, Curve, Scale, plot_confusion_matrix, plot_curves, plot_intervals, ticks


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@pytest.mark.parametrize(("start", "stop", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 97, [20, 40, 60, 80]), (5, 5, [5])])
def test_ticks_are_round_and_in_range(start, stop, expected):
    assert ticks(start, stop) == expected


def test_log_scale_maps_equal_factors_to_equal_distances():
    scale = Scale(1, 100, 0, 200, log=True)
    assert [scale(1), scale(10), scale(100)] == pytest.approx([0, 100, 200])


@pytest.mark.parametrize(
    "points", [[], [(0, 1)], [(0, 2), (1, 2)], [(0, math.nan), (1, 2), (2, math.inf)], [(1, 0.798), (2, 0.798 + 1e-17)]]
)
def test_plot_curves_accepts_any_points(points):
    root = parse(plot_curves([Curve("a & b", points, "blue")], title="<loss>", x="step"))
    coordinates = [float(mark.get(name)) for mark in root.iter("circle") for name in ("cx", "cy")]
    assert all(0 <= value <= 360 for value in coordinates)


def test_intervals_are_clipped_to_the_cell():
    root = parse(plot_intervals(Graph([(Interval(0.5, -3, 3), "blue")], start=-1, stop=1)))
    whisker = next(line for line in root.iter("line") if line.get("class") == "whisker")
    assert (float(whisker.get("x1")), float(whisker.get("x2"))) == (4, 126)


def test_equal_intervals_do_not_overlap():
    same = Interval(0.5, 0.4, 0.6)
    root = parse(plot_intervals(Graph([(same, colour) for colour in ("blue", "orange", "green")])))
    heights = [float(dot.get("cy")) for dot in root.iter("circle")]
    assert heights == [4, 12, 20]
    assert float(root.get("viewBox").split()[3]) == 24


def test_confusion_matrix_shows_counts():
    root = parse(plot_confusion_matrix([[18, 2], [5, 15]], ["a", "b"], title="t"))
    assert [text.text for text in root.iter("text") if "count" in text.get("class")] == ["18", "2", "5", "15"]


def test_every_colour_has_values_for_light_dark_and_print():
    from src.reporting.page import HERE

    style = (HERE / "page.css").read_text()
    assert all(style.count(f"--{name}: #") == 3 for name in COLOURS)
