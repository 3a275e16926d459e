"""stdout and stderr that take any text and survive whatever they lead to: a closed pipe, a full disk, an old terminal.

All that is printed goes through here, names out of strangers' files among it: control characters are escaped.

Python makes them raise where the terminal's encoding lacks a character, where the disk behind them is full, and where
they were closed before the process began. A study must not end for that.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from isoflop.escapes import printable

_SPELT = "–=- −=- —=- ×=x ·=. …=... →=-> ½=1/2 ¼=1/4 ⅛=1/8 ²=^2 √=sqrt α=alpha β=beta μ=mu µ=mu ’=' ≈=~ █=#"
_PLAIN = dict(pair.split("=") for pair in _SPELT.split()) | {"≤": "<=", "≥": ">=", "±": "+/-", "“": '"', "”": '"'}
_failures: dict[str, OSError] = {}  # of the streams that could not be written, by name
_ends_the_verb = True  # whether output that cannot be written ends what is being done


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Text for characters that an encoding lacks: our typography as a typewriter has it, the rest as \\uXXXX."""
    assert isinstance(error, UnicodeEncodeError)
    wanted = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in wanted), error.end


class _Surviving:
    """A text stream, less control characters, and less the errors of writing: the first is noted, and what comes after
    goes nowhere."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        self._put(printable(text, kept="\n\t"))
        return len(text)

    def over_the_line(self, text: str, end: str) -> None:
        """Writes `text` in the place of what the terminal's last line shows."""
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
        """What is still in the buffer has to go somewhere when the process ends."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def guard_streams() -> None:
    """Makes `sys.stdout` and `sys.stderr` survive; for the streams of a process, before anything is printed."""
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
    """Prints `text` in the place of the terminal's last line."""
    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, _Surviving):
        stream.over_the_line(text, end)
    else:
        print(text, end=end, file=stream, flush=True)


def rich_stream() -> TextIO:
    """stdout for Rich, which colours: it gets nothing but text that is escaped."""
    stream: Any = sys.stdout
    return stream._stream if isinstance(stream, _Surviving) else stream


def outlast_output() -> None:
    """From here on output that cannot be written does not end the verb: its result is kept elsewhere."""
    global _ends_the_verb
    _ends_the_verb = False


def lost_output() -> OSError | None:
    """Why stdout could not be written, if it could not."""
    return _failures.get("stdout")
