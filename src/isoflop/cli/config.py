"""`isoflop config`: what a configuration comes to."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.groups import argument, group

app = group("config", "Look at configurations.")

File = Annotated[Path, argument("Configuration file.", "FILE.toml")]
Overrides = Annotated[
    list[str] | None, argument("What replaces or adds to the file, such as optim.name=sgd.", "KEY=VALUE")
]


@app.command("show")
def show(
    file: File,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every value of a run's or study's configuration and where it comes from."""
    from isoflop.config import config_hash, dotted, flatten, literal, load_any

    loaded = load_any(file, overrides or [])
    origins = loaded.origins
    if as_json:
        plain = dict(flatten(loaded.config.model_dump(mode="json")))
        values = {dotted(key): {"value": value, "origin": origins[dotted(key)]} for key, value in plain.items()}
        print(json.dumps({"hash": config_hash(loaded.config), "values": values}, indent=2, ensure_ascii=False))
        return
    rows = [(dotted(key), literal(value), origins[dotted(key)]) for key, value in flatten(loaded.config)]
    rows.sort(key=lambda row: "." in row[0])  # plain keys first, as in a TOML file
    print_table(("key", "value", "origin"), rows)


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print aligned columns: with Rich on a terminal, in plain text elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
