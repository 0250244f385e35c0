"""Tables on stdout: as wide as the terminal, or as wide as their contents if stdout is a file or a pipe."""

import sys

from rich.console import Console
from rich.table import Table

UNLIMITED = 10_000  # characters; rich needs a number


def print_table(table: Table) -> None:
    """Prints `table` without truncation: long cells continue on the next line. The caption becomes a line below the table."""
    for column in table.columns:
        column.overflow = "fold"
    caption, table.caption = table.caption, None
    Console(width=None if sys.stdout.isatty() else UNLIMITED).print(table)
    if caption:
        print(caption)
