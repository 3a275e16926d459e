"""Where in a TOML text each value stands, which `tomllib` does not tell."""

import re
import tomllib
from collections.abc import Iterator
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"[^,\]}#\n]+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every key, table and list element of a TOML text that `tomllib` has accepted.

    A path is made of keys and list positions: `("families", "vit", "sizes", 0)`.
    """
    lines: dict[Path, int] = {}
    for path, line in _Scanner(text).document():
        lines.setdefault(path, line)
    return lines


class _Scanner:
    """One pass over valid TOML; because it is valid, no more is looked at than what ends a value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.line = 1
        self.tables: dict[Path, int] = {}  # arrays of tables: how many so far

    def document(self) -> Iterator[tuple[Path, int]]:
        prefix: Path = ()
        self.take(_BLANK)
        while self.position < len(self.text):
            line = self.line
            if self.skip("[["):
                prefix = self.header()
                number = self.tables.get(prefix, 0)
                self.tables[prefix] = number + 1
                prefix = (*prefix, number)
                self.skip("]]")
                yield from self.above(prefix, line)
            elif self.skip("["):
                prefix = self.header()
                self.skip("]")
                yield from self.above(prefix, line)
            else:
                yield from self.pair(prefix)
            self.take(_BLANK)

    def header(self) -> Path:
        """A table's name; a part that names an array of tables means its last element."""
        path: Path = ()
        names = list(self.key())
        for i, name in enumerate(names):
            path = (*path, name)
            if i + 1 < len(names) and path in self.tables:
                path = (*path, self.tables[path] - 1)
        return path

    def above(self, path: Path, line: int) -> Iterator[tuple[Path, int]]:
        """The path and the tables it is in: the first mention of one counts."""
        for depth in range(1, len(path) + 1):
            yield path[:depth], line

    def pair(self, prefix: Path) -> Iterator[tuple[Path, int]]:
        path = (*prefix, *self.key())
        yield from self.above(path, self.line)
        self.skip("=")
        self.take(_SPACE)
        yield from self.value(path)

    def key(self) -> Iterator[str]:
        while True:
            self.take(_SPACE)
            quoted = self.text[self.position] in "\"'"
            part = self.take(_STRING if quoted else _BARE_KEY)
            yield _unquoted(part) if quoted else part
            self.take(_SPACE)
            if not self.skip("."):
                return

    def value(self, path: Path) -> Iterator[tuple[Path, int]]:
        yield path, self.line
        if self.skip("["):
            self.take(_BLANK)
            position = 0
            while not self.skip("]"):
                yield from self.value((*path, position))
                position += 1
                self.take(_BLANK)
                self.skip(",")
                self.take(_BLANK)
        elif self.skip("{"):
            self.take(_BLANK)
            while not self.skip("}"):
                yield from self.pair(path)
                self.take(_BLANK)
                self.skip(",")
                self.take(_BLANK)
        elif not self.take(_STRING):
            self.take(_BARE)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        self.line += match[0].count("\n")
        return match[0]

    def skip(self, mark: str) -> bool:
        if self.text.startswith(mark, self.position):
            self.position += len(mark)
            return True
        return False


def _unquoted(key: str) -> str:
    """A quoted key without its quotes and escapes."""
    return next(iter(tomllib.loads(f"{key} = 0")))
