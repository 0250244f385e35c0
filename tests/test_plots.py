"""Drawings are well-formed, keep to their frame, and put values where they belong."""

import math
from xml.etree import ElementTree

import pytest

from src.reporting.blocks import Graph, Interval
from src.reporting.plots import Curve, curves, matrix, whiskers
from src.reporting.svg import COLOURS, Scale, ticks


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@pytest.mark.parametrize(("start", "stop", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 97, [20, 40, 60, 80]), (5, 5, [5])])
def test_ticks_are_round_and_inside(start, stop, expected):
    assert ticks(start, stop) == expected


def test_logarithmic_scale_puts_equal_factors_at_equal_distances():
    scale = Scale(1, 100, 0, 200, log=True)
    assert [scale(1), scale(10), scale(100)] == pytest.approx([0, 100, 200])


@pytest.mark.parametrize(
    "points", [[], [(0, 1)], [(0, 2), (1, 2)], [(0, math.nan), (1, 2), (2, math.inf)], [(1, 0.798), (2, 0.798 + 1e-17)]]
)
def test_any_log_can_be_drawn(points):
    root = parsed(curves([Curve("a & b", points, "blue")], title="<loss>", x="step"))
    coordinates = [float(mark.get(name)) for mark in root.iter("circle") for name in ("cx", "cy")]
    assert all(0 <= value <= 360 for value in coordinates)


def test_whiskers_stay_in_the_cell():
    root = parsed(whiskers(Graph([(Interval(0.5, -3, 3), "blue")], start=-1, stop=1)))
    whisker = next(line for line in root.iter("line") if line.get("class") == "whisker")
    assert (float(whisker.get("x1")), float(whisker.get("x2"))) == (4, 126)


def test_whiskers_of_one_cell_do_not_hide_one_another():
    same = Interval(0.5, 0.4, 0.6)
    root = parsed(whiskers(Graph([(same, colour) for colour in ("blue", "orange", "green")])))
    heights = [float(dot.get("cy")) for dot in root.iter("circle")]
    assert heights == [4, 12, 20]
    assert float(root.get("viewBox").split()[3]) == 24


def test_confusion_matrix_counts():
    root = parsed(matrix([[18, 2], [5, 15]], ["a", "b"], title="t"))
    assert [text.text for text in root.iter("text") if "count" in text.get("class")] == ["18", "2", "5", "15"]


def test_every_colour_has_a_light_a_dark_and_a_printed_value():
    from src.reporting.page import HERE

    style = (HERE / "page.css").read_text()
    assert all(style.count(f"--{name}: #") == 3 for name in COLOURS)
