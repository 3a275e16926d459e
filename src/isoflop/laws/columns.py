"""Columns of a CSV file, or an error in one line."""

import csv
import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError, did_you_mean, stand_in
from isoflop.laws.solve import Array

# What every law asks of its columns before it looks at them: equal length, positive, finite, of a credible size.


LARGEST = 1e100
"""Beyond it (and below its inverse) nothing is measured, and powers of it leave the floating-point range."""

CANNOT_TELL = 10.0
"""An interval of a loss whose ends differ by this factor is no answer."""


def tells_nothing(lo: float, hi: float) -> bool:
    """Whether (lo, hi) is no answer to what a loss will be."""
    return not hi <= CANNOT_TELL * lo


def fault(value: float) -> str:
    """What is wrong with a value of a column, "" if nothing: completes the sentence "`loss` must be …"."""
    if not (np.isfinite(value) and value > 0):
        return "positive and finite"
    return "" if 1 / LARGEST < value < LARGEST else f"between {1 / LARGEST:g} and {LARGEST:g}"


def positive_columns(**columns: ArrayLike) -> list[Array]:
    """The named columns as arrays of one length (m,), in their order.

    Raises:
        LawError: columns of different lengths, or a value that is not positive, finite and below `LARGEST`.
    """
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    if len({a.shape for a in arrays.values()}) != 1 or next(iter(arrays.values())).ndim != 1:
        shapes = ", ".join(f"`{name}` {a.shape}" for name, a in arrays.items())
        raise LawError(f"columns must be of equal length: {shapes}")
    for name, array in arrays.items():
        for row in np.flatnonzero(~((array > 1 / LARGEST) & (array < LARGEST)))[:1]:
            raise LawError(f"`{name}` must be {fault(float(array[row]))}, but row {row + 1} has {array[row]}")
    return list(arrays.values())


Columns = dict[str, list[str]]
LARGEST_FILE = 256 * 2**20
"""Bytes. A table of results is a thousand times smaller; a data set given by mistake is larger."""


@dataclass(frozen=True)
class TableSource:
    """Where columns are from, for messages: `lines[k]` is the line of row k in the file, () without a file."""

    name: str
    lines: tuple[int, ...] = ()

    def at(self, row: int) -> str:
        """The place of a row in the words of a message."""
        return f"{self.name}:{self.lines[row]}" if self.lines else f"{self.name}, row {row + 1}"


def read_columns(path: Path) -> tuple[Columns, TableSource]:
    """The columns of a CSV file (comma, semicolon or tab; first line names them) as text. Empty lines are skipped.

    Raises:
        LawError: no such file, not UTF-8 text, no rows, a name twice, or a row of another length.
    """
    text = _text(path)
    rows, lines = [], []
    delimiter = max(",;\t", key=next((line for line in text.split("\n") if line.strip()), "").count)
    reader = csv.reader(StringIO(text), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as problem:
        raise LawError(f"{path}:{reader.line_num} is not CSV: {problem}") from None
    if not rows:
        raise LawError(f"{path} is empty")
    names, *rows = rows
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LawError(f"{path}: the column `{twice}` appears twice")
    if not rows:
        raise LawError(f"{path} has column names and no rows")
    source = TableSource(path.name, tuple(lines[1:]))
    for k, row in enumerate(rows):
        if len(row) != len(names):
            raise LawError(f"{source.at(k)}: {len(row)} cells where the first line names {len(names)} columns")
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}, source


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise LawError(f"{path} is a directory: give a CSV file")
        if path.stat().st_size > LARGEST_FILE:
            raise LawError(f"{path} has {path.stat().st_size / 2**20:,.0f} MiB: that is no table of results")
        raw = path.read_bytes()
        if told := stand_in(raw[:64]):
            raise LawError(f"{path}: {told}")
    except FileNotFoundError:
        raise LawError(f"there is no file {path}") from None
    except OSError as problem:
        raise LawError(f"{path} cannot be read: {(problem.strerror or str(problem)).lower()}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise LawError(f"{path}:{line} cannot be read as text in UTF-8: save the table as CSV in UTF-8") from None
    if "\0" in text:
        raise LawError(f"{path} cannot be read as text: it has zero bytes")
    # Stray carriage returns are common in digitised tables; alone they end lines in very old files.
    return text.replace("\r", "" if "\n" in text else "\n")


def text_column(columns: Columns, name: str, source: TableSource) -> list[str]:
    """A column by name, or LawError with the name that may have been meant."""
    if name in columns:
        return columns[name]
    proper = {known.lower(): known for known in columns}
    hint = did_you_mean(name.lower(), proper, cutoff=0.5, written=proper.__getitem__) or "."
    shown = ", ".join(list(columns)[:20]) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")
    raise LawError(f"{source.name} has no column `{name}`{hint} It has: {shown}")


def name_column(columns: Columns, name: str, source: TableSource) -> list[str]:
    """A column of names (of families), or LawError where one is empty."""
    names = text_column(columns, name, source)
    if "" in names:
        raise LawError(f"{source.at(names.index(''))}: `{name}` is empty")
    return names


def positive_column(columns: Columns, name: str, source: TableSource, *, suffixes: bool = False) -> Array:
    """A column of positive, finite numbers, or LawError with the line of the first one that is not.

    Numbers may be written with thousands separators, decimal commas, a % sign, in LaTeX, as mean ± deviation (the mean
    is read), and with K, M, B and T where `suffixes` are counts.
    """
    text = text_column(columns, name, source)
    try:
        values = np.fromiter(map(float, text), np.float64, len(text))
        if ((values > 1 / LARGEST) & (values < LARGEST)).all() and not _dots_between_thousands(columns, text):
            return values
    except ValueError:
        pass
    decimal_comma = _dots_between_thousands(columns, text) or _decimal_comma(text, name, source)
    values = np.empty(len(text))  # cell by cell, to say which one is wrong
    for k, cell in enumerate(text):
        try:
            values[k] = _number(cell, decimal_comma, suffixes)
        except ValueError:
            short = cell if len(cell) <= 40 else f"{cell[:40]}…"
            what = "is empty" if is_missing(cell) else f"is not a number: {short!r}"
            raise LawError(f"{source.at(k)}: `{name}` {what}") from None
        if wrong := fault(float(values[k])):
            raise LawError(f"{source.at(k)}: `{name}` must be {wrong}, not {cell[:40]}")
    return values


COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
"""A number with thousands separators: also 3,141, which a decimal comma writes alike."""
DOTTED = re.compile(r"[1-9]\d{0,2}(\.\d{3})+(,\d+)?")


def is_missing(cell: str) -> bool:
    """Whether a cell has no value. NaN is a value: of a run that diverged."""
    return cell.lower() in ("", "-", "–", "—", "na", "n/a", "none", "null")


def _plain_cell(cell: str) -> str:
    """A cell without what only sets it: math mode, bold, %, deviation, spaces between thousands."""
    bare = re.sub(r"\\(?:textbf|mathbf|underline|num|mathrm|emph|,|!)|[${}*%~\u2248]", "", re.split(r"±|\\pm", cell)[0])
    return re.sub(r"(?<=\d)[ '_\u00a0\u2009\u202f](?=\d{3}(\D|$))", "", bare).strip()


def _dots_between_thousands(columns: Columns, cells: list[str]) -> bool:
    """Whether all cells of a column are such as 10.000 or 10.000.000, and dots cannot be decimal: some have two, or
    another column has decimal commas."""
    if not cells or not DOTTED.fullmatch(cells[0]) or not all(map(DOTTED.fullmatch, cells)):
        return False
    return any(c.count(".") > 1 for c in cells) or any(
        "," in c and re.fullmatch(r"\d+,\d+", c) and not GROUPED.fullmatch(c)
        for other in columns.values()
        for c in other
    )


def _decimal_comma(cells: list[str], name: str, source: TableSource) -> bool:
    """Whether the commas of a column are decimal, or LawError if the column does not tell."""
    commas = [(k, plain) for k, cell in enumerate(cells) if "," in (plain := _plain_cell(cell))]
    if not commas:
        return False
    thousands = [GROUPED.fullmatch(plain) for _, plain in commas]
    if not all(thousands):
        return True
    if any(plain.count(",") > 1 or "." in plain for _, plain in commas) or any("." in cell for cell in cells):
        return False
    k, plain = commas[0]
    raise LawError(
        f"{source.at(k)}: `{name}` is {plain}, with a decimal comma or thousands separators: write it with a point, or "
        "without separators"
    )


def _number(cell: str, decimal_comma: bool, suffixes: bool) -> float:
    """The number that a cell writes, or ValueError."""
    bare = _plain_cell(cell)
    if decimal_comma:
        if not re.fullmatch(r"\d+(,\d+)?", bare) and not DOTTED.fullmatch(bare):
            raise ValueError(cell)
        bare = bare.replace(".", "").replace(",", ".")
    elif "," in bare:
        if not GROUPED.fullmatch(bare):
            raise ValueError(cell)
        bare = bare.replace(",", "")
    if power := re.fullmatch(r"(?:([\d.]+)\s*(?:\\times|\\cdot|×|x|·)\s*)?10\s*(?:\^|\*\*)\s*([+-]?\d+)", bare):
        return float(power[1] or 1) * 10.0 ** int(power[2])
    if suffixes and (counted := re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)\s*([kmbgtKMBGT])", bare)):
        return float(counted[1]) * COUNTS[counted[2].lower()]
    return float(bare)


def words_of(name: str) -> list[str]:
    """The words of a column's name in lower case, without LaTeX: `valLoss`, `val/loss`, `Val. loss` are val, loss."""
    bare = re.sub(r"\\(?:mathcal|mathrm|text|mathit|mathbf)\b|[${}\\]", "", name)
    return re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", bare).lower())


def refuse_duplicates(columns: Columns, source: TableSource) -> None:
    """LawError if two rows agree in every column: a run that is listed twice counts double."""
    seen: dict[tuple[str, ...], int] = {}
    for k, row in enumerate(zip(*columns.values(), strict=True)):
        if row in seen:
            first = source.lines[seen[row]] if source.lines else seen[row] + 1
            raise LawError(
                f"{source.at(k)} is the same run as {'line' if source.lines else 'row'} {first}, listed twice: remove "
                "one (or add a column `seed` if they are two runs)"
            )
        seen[row] = k


def as_error(values: Array, name: str, source: TableSource, accuracy: bool | None = None) -> tuple[Array, str]:
    """Values to be minimised and their unit: an accuracy (by name, or if said so) becomes an error.

    Raises:
        LawError: an accuracy above 100 (or a perfect one, whose error has no logarithm), or fractions among percents.
    """
    if accuracy is None:
        accuracy = is_accuracy(name)
    if not accuracy:
        return values, name
    largest = int(np.argmax(values))
    top = float(values[largest])
    at = f"{source.at(largest)}: `{name}` is {top:g}"
    if top > 100:
        raise LawError(f"{at}: an accuracy cannot be above 100")
    if top in (1.0, 100.0):
        raise LawError(f"{at}: a perfect accuracy leaves no error to fit")
    fractions, percents = values[values <= 1.0], values[values > 1.0]
    # Nobody measures percents up to 2 only, nor a jump by a factor of 20 between neighbours of a ladder.
    if fractions.size and percents.size and (top <= 2.0 or percents.min() >= 20.0 * fractions.max()):
        other = int(np.flatnonzero(values == fractions.max())[0])
        raise LawError(
            f"{at} and {values[other]:g} in {'line' if source.lines else 'row'} "
            f"{source.lines[other] if source.lines else other + 1}: accuracies must be all fractions or all percents"
        )
    whole = 100.0 if percents.size else 1.0
    return whole - values, f"error in % ({whole:g} - {name})" if percents.size else f"error (1 - {name})"


ACCURACIES = {"precision", "map", "ap", "miou", "iou", "auc", "auroc", "auprc", "dice", "mcc", "ndcg", "mrr", "f1"}
NUMBERED = re.compile(
    r"(top|f|r|ap|map|hit|hits|pass|precision|recall)\d+|topk|hitrate|exactmatch|(pass|success|win)rate"
)


def is_accuracy(name: str) -> bool:
    """Whether a column's name is that of an accuracy or a score of at most 1 (or 100 %): top1, mIoU, mAP, F1, AUC …"""
    words = words_of(name)
    joined = "".join(words)
    if any(word in joined for word in ("err", "loss")):  # such as top1_error
        return False
    pairs = [f"{first}{second}" for first, second in pairwise(words)]
    known = {*words, *pairs, joined}
    return bool(ACCURACIES & known) or any(
        NUMBERED.fullmatch(text) or re.fullmatch(r"\w*acc|accuracy\w*|\w*accuracy|\w*recall|acc[1-9k]\d*", text)
        for text in known
    )


# Results that survive a round trip through JSON, so that a report can be drawn without fitting again.


LONG = 6
"""Longer lists are counted, not printed."""


class JsonRecord:
    """Base of the frozen dataclasses of `isoflop.laws`: `to_dict` gives JSON values, `from_dict` restores them."""

    def __init_subclass__(cls) -> None:
        # A dataclass would print every replicate of a bootstrap; what stands in the class already, it leaves alone.
        cls.__repr__ = JsonRecord.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """The fields in few digits; of long ones, how many there are."""
        shown = (f for f in dataclasses.fields(self) if f.repr)  # type: ignore[arg-type]
        fields = ((f.name, getattr(self, f.name)) for f in shown)
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in fields)})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as dicts, lists, strings, numbers, booleans and None."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record whose `to_dict` gave `values`; unknown keys are ignored, missing ones raise TypeError."""
        hints = _hints(cls)  # type: ignore[arg-type]
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: _restore(values[name], hints[name]) for name in names if name in values})


@cache
def _hints(record: Any) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list) and len(value) > LONG:
        return f"<{len(value)}>"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_short, value))})"
    if isinstance(value, Mapping):
        return f"<{', '.join(map(str, value))}>"
    return repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _restore(value: Any, hint: Any) -> Any:
    if value is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, JsonRecord):
        return hint.from_dict(value)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(value) if args[0] in (float, int, str) else tuple(_restore(v, args[0]) for v in value)
        return tuple(_restore(v, a) for v, a in zip(value, args, strict=True))
    if origin is dict:
        return {k: _restore(v, args[1]) for k, v in value.items()}
    if origin is not None and type(None) in args:  # X | None
        return _restore(value, next(a for a in args if a is not type(None)))
    return value
