"""Columns of anybody's CSV, or one clear line about what is wrong with it."""

import csv
import difflib
from pathlib import Path

import numpy as np

from isoflop.errors import LawError
from isoflop.laws.solve import Array

Columns = dict[str, list[str]]


def read_columns(path: Path) -> Columns:
    """The columns of a CSV file (comma, semicolon or tab; first line names them) as text.

    Raises:
        LawError: no such file, not text, no rows, a name twice, or a row of another length.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise LawError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise LawError(f"{path} cannot be read as text: {problem}") from None
    # Stray carriage returns are common in digitised tables; alone they end lines in very old files.
    text = text.replace("\r", "" if "\n" in text else "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise LawError(f"{path} is empty")
    delimiter = max(",;\t", key=lines[0].count)
    names, *rows = ([cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LawError(f"{path}: the column `{twice}` appears twice")
    if not rows:
        raise LawError(f"{path} has column names and no rows")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise LawError(f"{path}:{number}: {len(row)} cells where the first line names {len(names)} columns")
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


def text_column(columns: Columns, name: str, source: str) -> list[str]:
    """A column by name, or LawError with the name that may have been meant."""
    if name in columns:
        return columns[name]
    close = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    lower = [known for known in columns if known.lower() == name.lower()]
    guess = (lower or close or [""])[0]
    hint = f" - did you mean `{guess}`?" if guess else ""
    raise LawError(f"{source} has no column `{name}`{hint} It has: {', '.join(columns)}")


def positive_column(columns: Columns, name: str, source: str) -> Array:
    """A column of positive, finite numbers, or LawError with the line of the first one that is not."""
    values = np.empty(len(text := text_column(columns, name, source)))
    for k, cell in enumerate(text):
        try:
            values[k] = float(cell)
        except ValueError:
            what = "is empty" if not cell else f"is not a number: {cell!r}"
            raise LawError(f"{source}:{k + 2}: `{name}` {what}") from None
        if not (np.isfinite(values[k]) and values[k] > 0):
            raise LawError(f"{source}:{k + 2}: `{name}` must be positive and finite, not {cell}")
    return values


def refuse_duplicates(columns: Columns, source: str) -> None:
    """LawError if two rows agree in every column: a run that is listed twice counts double."""
    seen: dict[tuple[str, ...], int] = {}
    for k, row in enumerate(zip(*columns.values(), strict=True), start=2):
        if row in seen:
            raise LawError(f"{source}: lines {seen[row]} and {k} are one run listed twice: remove one")
        seen[row] = k


def as_error(values: Array, name: str, source: str, accuracy: bool | None = None) -> tuple[Array, str]:
    """Values to be minimised and their unit: an accuracy (by name, or if said so) becomes an error.

    Raises:
        LawError: an accuracy above 100 (or a perfect one, whose error has no logarithm).
    """
    if accuracy is None:
        accuracy = any(word in name.lower() for word in ("acc", "top1", "top-1", "top_1", "precision"))
    if not accuracy:
        return values, name
    percent = bool(values.max() > 1.0)
    whole = 100.0 if percent else 1.0
    if values.max() >= whole:
        k = int(np.argmax(values))
        why = "an accuracy cannot be above 100" if values[k] > 100 else "a perfect accuracy leaves no error to fit"
        raise LawError(f"{source}:{k + 2}: `{name}` is {values[k]:g}: {why}")
    return whole - values, f"error in % ({whole:g} - {name})" if percent else f"error (1 - {name})"
