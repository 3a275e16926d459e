"""Loading of a TOML file and `key=value` overrides into a typed configuration with the origin of each value."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pathlib import Path as FilePath
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from isoflop.config.fields import Table
from isoflop.config.problems import KeyPath, dotted, flatten, reach, sentences
from isoflop.errors import ConfigError, stand_in

# Where in a TOML text each value stands, which `tomllib` does not tell.


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"[^,\]}#\n]+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key, table and list element of a TOML text that `tomllib` has accepted.

    A path is made of keys and list positions: `("families", "vit", "sizes", 0)`.
    """
    lines: dict[KeyPath, int] = {}
    for path, line in _Scanner(text).document():
        lines.setdefault(path, line)
    return lines


class _Scanner:
    """One pass over valid TOML; because it is valid, no more is looked at than what ends a value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.line = 1
        self.tables: dict[KeyPath, int] = {}  # arrays of tables: how many so far

    def document(self) -> Iterator[tuple[KeyPath, int]]:
        prefix: KeyPath = ()
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

    def header(self) -> KeyPath:
        """A table's name; a part that names an array of tables means its last element."""
        path: KeyPath = ()
        names = list(self.key())
        for i, name in enumerate(names):
            path = (*path, name)
            if i + 1 < len(names) and path in self.tables:
                path = (*path, self.tables[path] - 1)
        return path

    def above(self, path: KeyPath, line: int) -> Iterator[tuple[KeyPath, int]]:
        """The path and the tables it is in: the first mention of one counts."""
        for depth in range(1, len(path) + 1):
            yield path[:depth], line

    def pair(self, prefix: KeyPath) -> Iterator[tuple[KeyPath, int]]:
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

    def value(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
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


# What somebody may have meant who named a file that is not there.


def nearest_path(path: Path) -> str:
    """` - did you mean ...?`: `path` with its first part that is not there replaced by the nearest name beside it.

    Nothing where no name is near, or where the corrected path is not there either.
    """
    wrong = path
    while not wrong.parent.exists():
        wrong = wrong.parent
    try:
        names = [other.name for other in wrong.parent.iterdir()]
    except OSError:
        return ""
    for name in get_close_matches(wrong.name, names, n=3, cutoff=0.6):
        corrected = wrong.parent / name / path.relative_to(wrong)
        if corrected.exists():
            return f" - did you mean `{corrected}`?"
    return ""


T = TypeVar("T", bound=Table)

LARGEST_FILE = 1 << 24  # bytes of a configuration
COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A configuration and the origin of its values."""

    config: T
    file: str
    """The file as it was named."""
    places: Mapping[KeyPath, str]
    """What was set, and where: `file:line` or `command line`."""
    raw: Mapping[str, Any]
    """File and overrides as they were written."""

    @property
    def origins(self) -> dict[str, str]:
        """The origin of every value by dotted key: `file:line`, `command line` or `default`."""
        return {dotted(path): self._origin(path) for path, _ in flatten(self.config)}

    def _origin(self, path: KeyPath) -> str:
        written, value = reach(self.raw, path)
        by_name = path[-1] == "name" and written == path[:-1] and isinstance(value, str)  # stands for its table
        if written == path or by_name:
            return _place(path, self.places, self.file)
        inherited = type(self.config).inherits(path)
        return self._origin(inherited) if inherited else DEFAULT


def load(path: str | FilePath | None, overrides: Sequence[str], kind: type[T]) -> Loaded[T]:
    """The configuration of type `kind` in the TOML file at `path`, if any, with `key=value` overrides on top.

    A value is TOML (`optim.betas=[0.9, 0.95]`); what is not TOML is taken as text (`data.source=digits`).
    Raises `ConfigError` that lists every problem, each with `file:line` or `command line`.
    """
    file = str(path) if path else COMMAND_LINE
    raw, text = read_toml(path) if path else ({}, "")
    places = {key: f"{file}:{line}" for key, line in key_lines(text).items()}
    found: list[tuple[KeyPath | None, str]] = [
        (None, message) for override in overrides if (message := _override(raw, places, override))
    ]
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        found += sentences(error, kind, raw)
    if found:
        raise _told(found, places, f"{file} (empty)" if path and not raw else file)
    return Loaded(config, file, places, raw)


def plain(config: T | Loaded[T]) -> T:
    """The configuration itself, also of what `load` returns."""
    return config.config if isinstance(config, Loaded) else config


def parse(raw: Mapping[str, Any], kind: type[T], source: str = "configuration") -> T:
    """The configuration of type `kind` in plain dictionaries, such as a stored `config.json`.

    Raises `ConfigError` that lists every problem; `source` says whose they are.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _told(sentences(error, kind, raw), {}, source) from None


def read_toml(path: str | FilePath) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file, and its text; ConfigError names the line where it is not TOML."""
    text = _read(FilePath(path))
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        reason = str(error)[: where.start()] if where else str(error)
        line = where[1] if where and where[1] else str(text.count("\n") + 1)
        hint = " - text needs quotes" if reason == "Invalid value" else ""
        raise ConfigError(f"{path}:{line}: not valid TOML: {reason[:1].lower()}{reason[1:]}{hint}") from None


def _told(found: Iterable[tuple[KeyPath | None, str]], places: Mapping[KeyPath, str], file: str) -> ConfigError:
    """One problem in one line, more in a list: the command line's first, then the file's, as they were written.

    The path of a problem is None where an override could not even be read.
    """
    order = {path: number for number, path in enumerate(places)}
    placed = [
        (COMMAND_LINE, -1, message)
        if path is None
        else (_place(path, places, file), order.get(_written(path, places), -1), message)
        for path, message in found
    ]
    placed.sort(key=lambda problem: (problem[0] != COMMAND_LINE, problem[1]))
    lines = [f"{place}: {message}" for place, _, message in placed]
    if len(lines) == 1:
        return ConfigError(lines[0])
    return ConfigError("\n  ".join([f"{len(lines)} problems in the configuration", *lines]))


def _place(path: KeyPath, places: Mapping[KeyPath, str], file: str) -> str:
    return places.get(_written(path, places), file)


def _written(path: KeyPath, places: Mapping[KeyPath, str]) -> KeyPath:
    """The innermost part of `path` that was written."""
    return next((path[:depth] for depth in range(len(path), 0, -1) if path[:depth] in places), ())


def _read(path: FilePath) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path} has {path.stat().st_size / 2**20:,.0f} MiB: that is no configuration")
        raw = path.read_bytes()
        if told := stand_in(raw[:64]):
            raise ConfigError(f"{path}: {told}")
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{nearest_path(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}), so not TOML") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _override(raw: dict[str, Any], places: dict[KeyPath, str], override: str) -> str:
    """Set what `key=value` says in `raw` and `places`; returns what is wrong with it, if anything."""
    key, equals, value = override.partition("=")
    try:
        path = _key(key)
    except (tomllib.TOMLDecodeError, ValueError):
        path = ()
    if not equals or not path:
        return f"`{override}` is not of the form key=value"
    table: Any = raw
    for depth, part in enumerate(path[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return f"`{dotted(path)}` cannot be set: `{dotted(path[:depth])}` is not a table"
    table[path[-1]] = _value(value)
    for place in [place for place in places if place[: len(path)] == path]:
        del places[place]
    places[path] = COMMAND_LINE
    return ""


def _key(key: str) -> KeyPath:
    path: KeyPath = ()
    level: Any = tomllib.loads(f"{key.strip()} = 0")
    while isinstance(level, dict):
        (name,) = level  # more than one: a line break in the key
        path, level = (*path, name), level[name]
    return path


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
