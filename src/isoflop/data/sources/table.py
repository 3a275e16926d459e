"""`table:FILE.csv`: a table of image paths and labels, with a header: `path,label` and optionally `split`.

Paths are relative to the table. `label` is a class name, or several separated by `|` for multi-label data; without the
column the images are unlabelled. `split` is train, test or val; without it all rows are for training. Cells are
separated by commas, semicolons or tabs; whitespace around them is ignored. Other usual names of the columns are
accepted, with a message, if there is only one candidate.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.config.load import nearest_path
from isoflop.data.records import (
    TEST_NAMES,
    Labels,
    Note,
    Part,
    fingerprint_images,
    no_labels,
    notes_on_names,
    read_image_file,
)
from isoflop.errors import DataError, stand_in
from isoflop.escapes import printable

_SEPARATOR = "|"  # of several classes in a cell
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of cells
_PATHS = (
    "file",
    "file_path",
    "filepath",
    "file_name",
    "filename",
    "image",
    "image_path",
    "image_file",
    "img",
    "img_path",
)
_LABELS = ("labels", "class", "class_name", "classname", "category", "target")
_SPLITS = ("set", "subset", "partition")
_SPLIT_VALUES: dict[str, Part] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys((*TEST_NAMES, "testing", "valid"), "test"),
}


class TableRecords:
    """Image files listed in a CSV."""

    shard_sizes: NDArray[np.int64] | None = None
    notes: tuple[Note, ...] = ()

    def __init__(self, path: Path, part: Part) -> None:
        self.uri = f"table:{path}"
        table = _Table(path)
        self.class_names: tuple[str, ...] = ()
        chosen = [k for k, line in enumerate(table.lines) if _is_in(table.split[k], part, f"{self.uri} line {line}")]
        if not chosen:
            raise DataError(f"{self.uri}: no rows for the {part} part", missing_part=True)
        self.labels: Labels = no_labels(len(chosen))
        if table.label is not None:
            labels, self.class_names = _labels(table.label, table.lines, self.uri)
            self.labels = labels[chosen]
        self.notes = (*table.notes, *notes_on_names(self.class_names))
        self._folder = str(path.parent)
        self._names = np.asarray([os.fsencode(table.path[k]) for k in chosen])
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16)
        digest.update(fingerprint_images([os.fsdecode(name) for name in self._names], path.parent).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        return read_image_file(self.name(index))

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return os.path.join(self._folder, os.fsdecode(self._names[index]))


class _Table:
    """The columns that matter of a table, a cell a row, and what was guessed."""

    def __init__(self, file: Path) -> None:
        self.uri, self.notes = f"table:{file}", list[Note]()
        header, rows = self._read(file)
        self._header = [" ".join(name.split()) for name in header]
        self.lines = [line for line, _ in rows]
        """of the file, from 1"""
        at = self._column("path", _PATHS)
        if at is None:
            found = ", ".join(filter(None, self._header)) or "none"
            raise DataError(f"{self.uri}: no column `path` in the first line; the columns are {printable(found)}")
        label = self._column("label", _LABELS)
        values = [{row[k].lower() for _, row in rows if k < len(row)} for k in range(len(header))]
        split = self._column("split", _SPLITS, lambda k: values[k] <= set(_SPLIT_VALUES))
        if label is None and (others := [n for k, n in enumerate(self._header) if k not in (at, split)]):
            self.notes.append(Note(f"no column `label` (but {', '.join(others)}): the images are unlabelled"))
        for line, row in rows:
            if len(row) > len(header):
                raise DataError(f"{self.uri} line {line}: {len(row)} cells, but {len(header)} columns")
        cells = [[*row, *[""] * (len(header) - len(row))] for _, row in rows]
        self.path = [self._path(row[at], line, file.parent) for row, line in zip(cells, self.lines, strict=True)]
        self.label = None if label is None else [row[label] for row in cells]
        self.split = ["" if split is None else row[split] for row in cells]

    def _read(self, file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """The header, and the rows that are not empty with their line numbers."""
        if not file.is_file():
            raise DataError(f"{self.uri}: no such file{nearest_path(file)}")
        try:
            content = file.read_bytes()
            if pointer := stand_in(content[:64]):
                raise DataError(f"{self.uri}: {pointer}")
            encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
            text = content.decode(encoding)
            first = text.partition("\n")[0]
            told = re.fullmatch(r"sep=(.)\s*", first)  # as spreadsheets write it
            text = text.partition("\n")[2] if told else text
            separator = told.group(1) if told else max(_SEPARATORS, key=first.count)
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
            rows = [
                (reader.line_num + bool(told), [cell.strip() for cell in row])
                for row in reader
                if any(cell.strip() for cell in row)
            ]
        except UnicodeDecodeError as error:
            raise DataError(f"{self.uri}: not UTF-8 text ({error})") from error
        except (csv.Error, OSError) as error:
            raise DataError(f"{self.uri}: not readable as CSV ({error})") from error
        if separator != ",":
            self.notes.append(Note(f"cells are separated by {_SEPARATORS.get(separator, f'`{separator}`')}"))
        if len(rows) < 2:
            raise DataError(f"{self.uri}: no rows below the header")
        return rows[0][1], rows[1:]

    def _column(self, name: str, others: tuple[str, ...], fits: Callable[[int], bool] = lambda k: True) -> int | None:
        """The place of the column `name`, or of the only one with another usual name for it that `fits`; None if there
        is none.
        """
        known = [n.lower().replace(" ", "_").replace("-", "_") for n in self._header]
        for wanted in ((name,), others):
            found = [k for k, n in enumerate(known) if n in wanted and (n == name or fits(k))]
            if len(found) > 1:
                both = " and ".join(f"`{printable(self._header[k])}`" for k in found[:2])
                raise DataError(f"{self.uri}: the columns {both} would do for `{name}`; call one `{name}`")
            if found:
                if self._header[found[0]] != name:
                    self.notes.append(Note(f"the column `{self._header[found[0]]}` is taken for `{name}`"))
                return found[0]
        return None

    def _path(self, text: str, line: int, folder: Path) -> str:
        if not text or "\0" in text:
            raise DataError(f"{self.uri} line {line}: {'a null character in' if text else 'no'} path")
        if "\\" in text and not os.path.lexists(folder / text):
            return text.replace("\\", "/")  # of a table from Windows
        return text


def _is_in(split: str, part: Part, where: str) -> bool:
    known = _SPLIT_VALUES.get(split.lower() or "train")
    if known is None:
        names = ", ".join(TEST_NAMES)
        raise DataError(f"{where}: unknown split `{printable(split)}`; use train, {names}")
    return known == part


def _labels(texts: list[str], lines: list[int], uri: str) -> tuple[Labels, tuple[str, ...]]:
    is_several = any(_SEPARATOR in text for text in texts)
    for text, line in zip(texts, lines, strict=True):
        if not text and not is_several:
            raise DataError(f"{uri} line {line}: the label is missing")
    words = [[word.strip() for word in text.split(_SEPARATOR) if word.strip()] for text in texts]
    names = sorted({word for row in words for word in row})
    number = {name: k for k, name in enumerate(names)}
    if not is_several:
        return np.asarray([number[row[0]] for row in words], dtype=np.int64), tuple(names)
    several = np.zeros((len(texts), len(names)), dtype=np.uint8)
    for k, row in enumerate(words):
        several[k, [number[word] for word in row]] = 1
    return several, tuple(names)
