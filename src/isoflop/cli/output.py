"""What programs read: with `--json` a verb prints one JSON object on stdout, and nothing else."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.streams import outlast_output
from isoflop.escapes import escaped_json

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one object. Paths become text, dataclasses objects; numbers that are not finite become null."""
    print(json_text(_plain(document)), flush=True)


def json_text(document: Any) -> str:
    """`document` as JSON whose text is readable, and escaped where it is not printable."""
    return escaped_json(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def aside(as_json: bool) -> Iterator[None]:
    """Around work whose result is kept in files: what is printed meanwhile cannot end it.

    With `--json` that goes to stderr: stdout is for the object alone.
    """
    if not as_json:
        outlast_output()
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int) or value is None:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):  # a named tuple
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(part) for part in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON")
