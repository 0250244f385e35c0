"""The blocks of a report, independent of the output format (HTML, Markdown)."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A score with its 95% interval."""

    value: float
    low: float
    high: float
    signed: bool = False  # a difference, printed with its sign

    def __str__(self) -> str:
        number = "{:+.3f}" if self.signed else "{:.3f}"
        bounds = f" [{number}, {number}]" if self.low != self.high else ""
        return (number + bounds).format(self.value, self.low, self.high)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Graph:
    """Intervals, each with a colour, drawn as dots with whiskers on one scale from `start` to `stop`."""

    marks: list[tuple[Interval, str]]
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class Link:
    text: str
    href: str


@dataclass
class Table:
    """Cells are str, int, float, Interval, Graph, Link or None. A line is drawn above each row whose index is in `rules`."""

    columns: list[str]
    rows: list[list[Any]]
    caption: str = ""
    rules: list[int] = field(default_factory=list)


@dataclass
class Figure:
    """SVG plots that share a legend and a caption."""

    plots: list[str]
    caption: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)  # (name, colour)


@dataclass
class Text:
    """A paragraph; `kind` is 'plain', 'finding' (a conclusion) or 'gap' (something is missing, with the way to get it)."""

    text: str
    kind: str = "plain"


@dataclass
class Code:
    lines: list[str]


@dataclass
class Tiles:
    """The headline numbers: (label, value, remark)."""

    tiles: list[tuple[str, Any, str]]


@dataclass
class Example:
    image: str  # data URI; empty if it is withheld
    question: str
    references: list[str]
    answers: list[tuple[str, str, bool]]  # (condition, answer, is correct)
    about: str


@dataclass
class Examples:
    examples: list[Example]
    caption: str


@dataclass
class Folded:
    """Details that are collapsed on screen and printed in full."""

    title: str
    blocks: list[Any]


@dataclass
class Section:
    title: str
    blocks: list[Any]

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())
