"""How tables and numbers look on the command line."""

import sys
from collections.abc import Sequence

from isoflop.cli.streams import rich_stream
from isoflop.escapes import printable


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, with Rich on a terminal and as plain text elsewhere; columns of numbers to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(head))]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for title, is_right in zip(head, right, strict=True):
            table.add_column(title, justify="right" if is_right else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        Console(file=rich_stream()).print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = zip(row, widths, right, strict=True)
        print("  ".join(f"{cell:{'>' if is_right else '<'}{width}}" for cell, width, is_right in cells).rstrip())


def power(value: float, digits: int = 2) -> str:
    """`1.5e+12` as `1.5e12`."""
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789-+."
