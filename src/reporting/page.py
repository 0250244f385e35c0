"""Sections -> one HTML file that needs nothing beside it, and their tables as Markdown."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from src.reporting.blocks import Folded, Graph, Interval, Link, Section, Table, Text
from src.reporting.plots import whiskers

HERE = Path(__file__).parent


def html(sections: list[Section], *, title: str, lead: str) -> str:
    """Everything from data is escaped by the template; only our own SVG, style and script are not."""
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    pages.filters |= {"cell": cell, "sort_key": sort_key, "numeric": numeric, "kind": kind}
    css, js = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return pages.get_template("page.html.jinja").render(sections=sections, title=title, lead=lead, css=css, js=js)


def cell(value: Any) -> Markup:
    if isinstance(value, Interval):
        number, _, bounds = str(value).partition(" ")
        return Markup('{}<span class="bounds">{}</span>').format(number, bounds) if bounds else escape(number)
    if isinstance(value, Graph):
        return Markup(whiskers(value))
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(value.href, value.text)
    return Markup('<span class="none">-</span>') if value is None or value == "" else escape(shown(value))


def shown(value: Any) -> str:
    """A cell as words."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else value.text if isinstance(value, Link) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def sort_key(value: Any) -> str:
    value = value.marks[0][0].value if isinstance(value, Graph) else value.value if isinstance(value, Interval) else value
    return "" if value is None else value.text if isinstance(value, Link) else str(value)


def numeric(table: Table, column: int) -> bool:
    """A column is set flush right when it holds numbers and nothing else."""
    found = [row[column] for row in table.rows if row[column] is not None and row[column] != ""]
    return bool(found) and all(isinstance(value, int | float | Interval) for value in found)


def kind(value: Any, is_numeric: bool) -> Markup:
    if is_numeric:
        return Markup(' class="number"')
    return Markup(' class="wrap"') if isinstance(value, str) and len(value) > 32 else Markup("")


def markdown(sections: list[Section], *, title: str) -> str:
    """Texts and tables; drawings and images have no place in it."""
    lines = [f"# {title}"]
    for section in sections:
        lines += ["", f"## {section.title}"]
        for block in _unfolded(section.blocks):
            if isinstance(block, Text):
                lines += ["", block.text]
            elif isinstance(block, Table) and block.rows:
                lines += ["", *markdown_table(block)] + (["", block.caption] if block.caption else [])
    return "\n".join(lines) + "\n"


def markdown_table(table: Table) -> list[str]:
    keep = [n for n in range(len(table.columns)) if not any(isinstance(row[n], Graph) for row in table.rows)]
    heads = [table.columns[n] for n in keep]
    marks = ["---:" if numeric(table, n) else "---" for n in keep]
    rows = [[shown(row[n]).replace("|", "\\|") for n in keep] for row in table.rows]
    return [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]


def _unfolded(blocks: list[Any]) -> list[Any]:
    return [inner for block in blocks for inner in (_unfolded(block.blocks) if isinstance(block, Folded) else [block])]
