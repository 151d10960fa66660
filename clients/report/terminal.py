"""Tables in a terminal, and the same as aligned plain text in a pipe. All text may be of others' making."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remuda.clients.report.units import plain

# Of a cell in a terminal: the numbers need the room, and must not be folded.
_MAX_LABEL: Final = 24


def show_line(console: Console, text: str, style: str = "") -> None:
    """One line, never wrapped in a pipe, with nothing in it taken for markup."""
    console.print(Text(plain(text), style=style), soft_wrap=not console.is_terminal)


def show_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right. `title` stands above."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if console.is_terminal:
        console.print(_rich_table(title, header, cells, console.width))
        return
    show_line(console, title)
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in (header, *cells):
        aligned = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        show_line(console, ("  " + "  ".join(aligned)).rstrip())
    show_line(console, "")


def _rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> Table:
    columns = list(zip(header, *rows, strict=True))
    # A column is as wide as its widest number, or as the widest word of its name.
    widths = [max(map(len, (*name.split(), *cells)), default=0) for name, *cells in columns]
    gap = 2 if sum(widths) + 2 * len(widths) <= room else 1
    table = Table(title=Text(title, style="bold"), box=None, title_justify="left", padding=(0, gap, 0, 0))
    for place, (name, width) in enumerate(zip(header, widths, strict=True)):
        if place == 0:
            table.add_column(Text(name), no_wrap=True, max_width=_MAX_LABEL)
        else:
            table.add_column(Text(name), justify="right", min_width=min(width, _MAX_LABEL))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
