"""Renders sections as one self-contained HTML file, and their texts and tables as Markdown."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from src.reporting.blocks import Folded, Graph, Interval, Link, Section, Table, Text
from src.reporting.plots import plot_intervals

HERE = Path(__file__).parent


def html(sections: list[Section], *, title: str, lead: str) -> str:
    """The template escapes everything that comes from data; only our own SVG, CSS and JavaScript are inserted as they are."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": cell_html, "sort_key": sort_key, "numeric": is_numeric, "cell_class": cell_class}
    css, js = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return environment.get_template("page.html.jinja").render(sections=sections, title=title, lead=lead, css=css, js=js)


def cell_html(value: Any) -> Markup:
    if isinstance(value, Interval):
        number, _, bounds = str(value).partition(" ")
        return Markup('{}<span class="bounds">{}</span>').format(number, bounds) if bounds else escape(number)
    if isinstance(value, Graph):
        return Markup(plot_intervals(value))
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(value.href, value.text)
    return Markup('<span class="none">-</span>') if value is None or value == "" else escape(cell_text(value))


def cell_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else value.text if isinstance(value, Link) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def sort_key(value: Any) -> str:
    value = value.marks[0][0].value if isinstance(value, Graph) else value.value if isinstance(value, Interval) else value
    return "" if value is None else value.text if isinstance(value, Link) else str(value)


def is_numeric(table: Table, column: int) -> bool:
    """Whether a column holds only numbers, apart from empty cells; such a column is aligned to the right."""
    values = [row[column] for row in table.rows if row[column] is not None and row[column] != ""]
    return bool(values) and all(isinstance(value, int | float | Interval) for value in values)


def cell_class(value: Any, numeric: bool) -> Markup:
    if numeric:
        return Markup(' class="number"')
    return Markup(' class="wrap"') if isinstance(value, str) and len(value) > 32 else Markup("")


def markdown(sections: list[Section], *, title: str) -> str:
    """Texts and tables as Markdown, without plots and images."""
    lines = [f"# {title}"]
    for section in sections:
        lines += ["", f"## {section.title}"]
        for block in _flatten(section.blocks):
            if isinstance(block, Text):
                lines += ["", block.text]
            elif isinstance(block, Table) and block.rows:
                lines += ["", *markdown_table(block)] + (["", block.caption] if block.caption else [])
    return "\n".join(lines) + "\n"


def markdown_table(table: Table) -> list[str]:
    columns = [n for n in range(len(table.columns)) if not any(isinstance(row[n], Graph) for row in table.rows)]
    header = [table.columns[n] for n in columns]
    alignment = ["---:" if is_numeric(table, n) else "---" for n in columns]
    rows = [[cell_text(row[n]).replace("|", "\\|") for n in columns] for row in table.rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)]


def _flatten(blocks: list[Any]) -> list[Any]:
    return [inner for block in blocks for inner in (_flatten(block.blocks) if isinstance(block, Folded) else [block])]
