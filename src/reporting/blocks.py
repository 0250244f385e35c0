"""What a report is made of, before it is HTML, Markdown or CSV."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A score with its 95% interval."""

    value: float
    low: float
    high: float
    signed: bool = False  # a difference: shown with its sign

    def __str__(self) -> str:
        form = "{:+.3f}" if self.signed else "{:.3f}"
        bounds = f" [{form}, {form}]" if self.low != self.high else ""
        return (form + bounds).format(self.value, self.low, self.high)

    @property
    def clear(self) -> bool:
        """The interval leaves zero out."""
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
    """Cells are str, int, float, Interval, Graph, Link or None; `rules` are row numbers above which a line is drawn."""

    columns: list[str]
    rows: list[list[Any]]
    caption: str = ""
    rules: list[int] = field(default_factory=list)


@dataclass
class Figure:
    """Drawings that belong together, as SVG, and what their colours mean."""

    drawings: list[str]
    caption: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)  # (name, colour)


@dataclass
class Text:
    """A paragraph; `kind` is 'plain', 'finding' (a conclusion) or 'gap' (what is missing, and how to get it)."""

    text: str
    kind: str = "plain"


@dataclass
class Code:
    lines: list[str]


@dataclass
class Tiles:
    """The few numbers that a reader looks for first: (label, value, remark)."""

    tiles: list[tuple[str, Any, str]]


@dataclass
class Example:
    image: str  # data URI
    question: str
    references: list[str]
    answers: list[tuple[str, str, bool]]  # (condition, answer, right)
    about: str


@dataclass
class Examples:
    examples: list[Example]
    caption: str


@dataclass
class Folded:
    """Detail that a reader opens when wanted; printed in full."""

    title: str
    blocks: list[Any]


@dataclass
class Section:
    title: str
    blocks: list[Any]

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())
