"""Output on stdout and stderr: tables, progress, and `--json`, which prints one JSON object and nothing else."""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from isoflop.errors import ConfigError, MissingExtra
from isoflop.escapes import escaped_json, printable

# stdout and stderr that accept any text and tolerate a closed pipe, a full disk, or a terminal without Unicode.
#
# All output goes through here. Control characters, such as those in names from files, are escaped.
#
# Python's streams raise if the encoding lacks a character, if the disk is full, and if they were closed before the
# process started. This must not stop a study.


_SPELT = "–=- −=- —=- ×=x ·=. …=... →=-> ½=1/2 ¼=1/4 ⅛=1/8 ²=^2 √=sqrt α=alpha β=beta μ=mu µ=mu ’=' ≈=~ █=#"
_PLAIN = dict(pair.split("=") for pair in _SPELT.split()) | {"≤": "<=", "≥": ">=", "±": "+/-", "“": '"', "”": '"'}
_failures: dict[str, OSError] = {}  # of the streams that could not be written, by name
_ends_the_verb = True  # whether output that cannot be written ends what is being done
_quiet = False


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replacement for characters that an encoding lacks: ASCII for our typography, \\uXXXX for others."""
    assert isinstance(error, UnicodeEncodeError)
    wanted = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in wanted), error.end


class _Surviving:
    """A text stream that escapes control characters and does not raise on write errors: the first error is kept, later
    output is dropped."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        self._put(printable(text, kept="\n\t"))
        return len(text)

    def over_the_line(self, text: str, end: str) -> None:
        """Overwrites the last line of the terminal with `text`."""
        self._put(f"\r\x1b[2K{printable(text, kept=chr(10))}{end}")
        self.flush()

    def _put(self, text: str) -> None:
        with self._noting():
            self._stream.write(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            failure = error if isinstance(error, OSError) else OSError(str(error))
            _failures.setdefault(self._name, failure)
            self._lead_nowhere()
            if _ends_the_verb and self._name == "stdout":
                raise failure from error

    def _lead_nowhere(self) -> None:
        """Redirects the stream to the null device, where the buffer is flushed at exit."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def guard_streams() -> None:
    """Makes `sys.stdout` and `sys.stderr` tolerate write errors; call it before anything is printed."""
    global _ends_the_verb
    _ends_the_verb = True
    _failures.clear()
    for descriptor in range(3):  # a closed one would be given to the next file that is opened, and printed into
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("isoflop.plain", _plainly)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the process began
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        if isinstance(stream, _Surviving):
            continue
        with suppress(AttributeError, ValueError):  # what a test or a notebook has put there
            stream.reconfigure(errors="isoflop.plain")
        setattr(sys, name, _Surviving(stream, name))


def over_the_line(text: str, *, end: str = "", to_stderr: bool = False) -> None:
    """Overwrites the last line of the terminal with `text`."""
    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, _Surviving):
        stream.over_the_line(text, end)
    else:
        print(text, end=end, file=stream, flush=True)


def rich_stream() -> TextIO:
    """stdout for Rich; its text must already be escaped."""
    stream: Any = sys.stdout
    return stream._stream if isinstance(stream, _Surviving) else stream


def outlast_output() -> None:
    """From now on, a failure to write output does not stop the verb, because its result is stored in files."""
    global _ends_the_verb
    _ends_the_verb = False


def be_quiet(quiet: bool) -> None:
    """Whether `--quiet` was given: results, warnings and errors are printed then, and no progress."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """See `be_quiet`."""
    return _quiet


def tell_progress(text: str) -> None:
    """Print a line of progress on stderr, unless `--quiet` was given."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def lost_output() -> OSError | None:
    """The error of writing stdout, if there was one."""
    return _failures.get("stdout")


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def print_json(document: Mapping[str, Any]) -> None:
    """Print `document`. Paths become text, dataclasses objects, numbers that are not finite null."""
    print(json_text(_plain(document)), flush=True)


def json_text(document: Any) -> str:
    """`document` as JSON with readable text; only unprintable characters are escaped."""
    return escaped_json(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def aside(as_json: bool) -> Iterator[None]:
    """A context for work whose result is stored in files: a failure to print does not stop it.

    With `--json`, output goes to stderr, because stdout is for the object only.
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


# Tables and numbers


_LEAST_TEXT = 16  # characters of a column of text


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, with Rich on a terminal and as plain text elsewhere. Columns of numbers are right-aligned.

    A terminal too narrow for the table wraps its text, and never cuts a number.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(head))]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table, console = Table(box=box.SIMPLE_HEAD), Console(file=rich_stream())
        cells = zip(*rows, strict=True) if rows else [()] * len(head)
        least = [
            max(map(len, column), default=0) if is_right else min(width, _LEAST_TEXT)
            for column, width, is_right in zip(cells, widths, right, strict=True)
        ]
        for title, is_right, width in zip(head, right, least, strict=True):
            table.add_column(title, justify="right" if is_right else "left", min_width=width, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        if sum(least) + 3 * len(head) <= console.width:
            console.print(table)
            return
    for row in (head, *rows):
        cells = zip(row, widths, right, strict=True)
        print("  ".join(f"{cell:{'>' if is_right else '<'}{width}}" for cell, width, is_right in cells).rstrip())


def power(value: float, digits: int = 2) -> str:
    """`1.5e+12` as `1.5e12`."""
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def duration(seconds: float) -> str:
    """Seconds in the two largest units: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789-+."


# Groups of verbs


def group(name: str, help: str, *, completion: bool = False) -> typer.Typer:
    """A group of verbs that prints its help if no verb is given; `completion` adds options for shell completion."""
    app = typer.Typer(
        name=name,
        help=help,
        add_completion=completion,
        rich_markup_mode=None,  # plain help starts in half the time
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True, help=help)
    def alone(context: typer.Context) -> None:
        help_when_alone(context)

    return app


def help_when_alone(context: typer.Context) -> None:
    """Print the help of a group if no verb is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def examples(*lines: str) -> str:
    """The examples at the end of a verb's help; a test checks that they are valid."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def argument(help: str, metavar: str, **more: Any) -> Any:
    """An argument with the name `metavar` in the help."""
    return typer.Argument(help=help, metavar=metavar, show_default=False, **more)


# Completion of names in a shell


def model_names(incomplete: str) -> list[str]:
    """The presets that begin so. They are kept in the cache, because their table needs torch, which takes seconds."""
    from isoflop.runs.files import cache_directory, write_atomically

    table = Path(__file__).parents[1] / "models" / "presets.py"
    kept = cache_directory() / "completion" / f"models-{table.stat().st_mtime_ns}"
    try:
        names = kept.read_text(encoding="utf-8").split()
    except OSError:
        try:
            from isoflop.models.presets import PRESETS
        except MissingExtra:  # a shell that completes is no place for errors
            return []
        names = list(PRESETS)
        with suppress(OSError):  # a cache that cannot be written
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, "\n".join(names), synced=False)
    return [name for name in names if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PRESET", help="The model of a .safetensors file.", autocompletion=model_names),
]


# Existing files and folders


def existing(path: Path) -> Path:
    """`path`, if it exists; otherwise ConfigError with the nearest name."""
    if not path.exists():
        from isoflop.config.load import nearest_path

        raise ConfigError(f"{path}: no such file{nearest_path(path)}")
    return path
