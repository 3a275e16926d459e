"""`table:FILE.csv`: a table of image paths and labels, with a header: `path,label` and optionally `split`.

Paths are relative to the table. `label` holds a class name; several, separated by `|`, make the data multi-label;
without the column the images are unlabelled. `split` is train, test or val; without it all rows are for training.
"""

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.config.nearest import nearest_path
from isoflop.data.quarantine import Note
from isoflop.data.records import TEST_NAMES, Labels, Part, fingerprint_images, no_labels
from isoflop.errors import DataError

_SEPARATOR = "|"


class TableRecords:
    """Image files listed in a CSV."""

    shard_sizes: NDArray[np.int64] | None = None
    notes: tuple[Note, ...] = ()

    def __init__(self, path: Path, part: Part) -> None:
        self.uri = f"table:{path}"
        rows = _rows(path)
        self.class_names: tuple[str, ...] = ()
        chosen = [k for k, row in enumerate(rows) if _is_in(row, part, path, k)]
        if not chosen:
            raise DataError(f"{self.uri}: no rows for the {part} part")
        self.labels: Labels = no_labels(len(chosen))
        if "label" in rows[0]:
            labels, self.class_names = _labels([row["label"] or "" for row in rows], path)
            self.labels = labels[chosen]
        self._folder = str(path.parent)
        self._names = np.asarray([os.fsencode(rows[k]["path"] or "") for k in chosen])
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16)
        digest.update(fingerprint_images([os.fsdecode(name) for name in self._names], path.parent).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return os.path.join(self._folder, os.fsdecode(self._names[index]))


def _rows(path: Path) -> list[dict[str, str | None]]:
    if not path.is_file():
        raise DataError(f"table:{path}: no such file{nearest_path(path)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or ()):
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise DataError(f"table:{path}: no column `path` in the first line; the columns are {found}")
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise DataError(f"table:{path}: not UTF-8 text ({error})") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"table:{path}: not readable as CSV ({error})") from error
    if not rows:
        raise DataError(f"table:{path}: no rows below the header")
    for k, row in enumerate(rows):
        if not row["path"] or "\0" in row["path"]:
            raise DataError(f"table:{path} line {k + 2}: {'a null character in' if row['path'] else 'no'} path")
    return rows


def _is_in(row: dict[str, str | None], part: Part, path: Path, k: int) -> bool:
    split = row.get("split") or "train"
    if split not in ("train", *TEST_NAMES):
        raise DataError(f"table:{path} line {k + 2}: unknown split `{split}`; use train, {', '.join(TEST_NAMES)}")
    return (split == "train") == (part == "train")


def _labels(texts: list[str], path: Path) -> tuple[Labels, tuple[str, ...]]:
    is_several = any(_SEPARATOR in text for text in texts)
    for k, text in enumerate(texts):
        if not text and not is_several:
            raise DataError(f"table:{path} line {k + 2}: the label is missing")
    words = [[word for word in text.split(_SEPARATOR) if word] for text in texts]
    names = sorted({word for row in words for word in row})
    number = {name: k for k, name in enumerate(names)}
    if not is_several:
        return np.asarray([number[row[0]] for row in words], dtype=np.int64), tuple(names)
    several = np.zeros((len(texts), len(names)), dtype=np.uint8)
    for k, row in enumerate(words):
        several[k, [number[word] for word in row]] = 1
    return several, tuple(names)
