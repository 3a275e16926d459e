"""`ade20k:FOLDER`: a map of classes for every picture, in ADE20K's layout.

    images/training/NAME.jpg        annotations/training/NAME.png     one channel, a number for each pixel
    images/validation/…             annotations/validation/…          (or train, val, test)

Options: `ignore=N` is a number to ignore, in addition to 255; `first=N` the number of the first class, lower ones are
ignored (ADE20K has `first=1`); `classes=N` the number of classes. The default is the number of lines of `classes.txt`
in the folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.config.load import nearest_path
from isoflop.data.decode import DamagedImage
from isoflop.data.dense.canvas import read_map, read_picture
from isoflop.data.dense.objects import IGNORED
from isoflop.data.records import Note, Part, fingerprint_images, read_class_lines, read_image_file
from isoflop.data.source import Task
from isoflop.errors import DataError

_PARTS: dict[Part, tuple[str, ...]] = {"train": ("train", "training"), "test": ("test", "val", "validation")}
_PICTURES = (".jpg", ".jpeg", ".png")


class MapRecords:
    """One part of such a folder; see this module's first lines.

    Raises DataError where a folder, a map or the number of classes is missing; and when a map is read, for one that is
    not of the size of its picture, or has a class that there is not.
    """

    task: Task = "segment"
    has_masks = False

    def __init__(
        self, folder: Path, part: Part, *, classes: int | None = None, ignore: int | None = None, first: int = 0
    ) -> None:
        self.uri = f"ade20k:{folder}"
        self._folder, self._ignore, self._first = folder, ignore, first
        self._part = _part(folder, part)
        pictures = sorted((folder / "images" / self._part).iterdir())
        self._pictures = [path for path in pictures if path.suffix.lower() in _PICTURES]
        others = [path.name for path in pictures if path not in set(self._pictures)]
        self.notes: tuple[Note, ...] = ()
        if others:
            self.notes = (Note("files that are no pictures", tuple(others), len(others)),)
        if not self._pictures:
            raise DataError(f"{folder / 'images' / self._part}: no pictures ({', '.join(_PICTURES)})")
        self.class_names = _class_names(folder, classes)
        missing = [path for path in self._pictures if not self._map(path).is_file()]
        if missing:
            raise DataError(
                f"{self._map(missing[0])}: no map for {missing[0].name} ({len(missing)} of {len(self._pictures)} "
                "pictures have none)"
            )
        shown = [f"images/{self._part}/{path.name}" for path in self._pictures]
        maps = [f"annotations/{self._part}/{path.stem}.png" for path in self._pictures]
        content = repr((fingerprint_images([*shown, *maps], folder), self.class_names, ignore, first))
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        """See `DenseRecords.name`."""
        return str(self._pictures[index])

    def read(self, index: int) -> bytes:
        """See `DenseRecords.read`."""
        return read_image_file(self._pictures[index])

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `DenseRecords.pixels`."""
        return read_picture(self, index)

    def truth(self, index: int) -> NDArray[np.uint8]:
        """See `DenseRecords.truth`."""
        path = self._map(self._pictures[index])
        numbers = read_map(path)
        ignored = (numbers == IGNORED) | (numbers < self._first)
        if self._ignore is not None:
            ignored |= numbers == self._ignore
        classes = numbers - np.uint8(self._first)
        too_high = ~ignored & (classes >= len(self.class_names))
        if too_high.any():
            raise DamagedImage(
                f"{path}: class {numbers[too_high].max()}, but there are {len(self.class_names)} classes from "
                f"{self._first} on; give `classes=N`, or the number that is to be ignored with `ignore=N`"
            )
        return np.where(ignored, np.uint8(IGNORED), classes)

    def _map(self, picture: Path) -> Path:
        return self._folder / "annotations" / self._part / f"{picture.stem}.png"


def _part(folder: Path, part: Part) -> str:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder{nearest_path(folder)}")
    for name in _PARTS[part]:
        if (folder / "images" / name).is_dir():
            return name
    raise DataError(f"{folder}: no folder images/{' or images/'.join(_PARTS[part])}")


def _class_names(folder: Path, classes: int | None) -> tuple[str, ...]:
    listed = folder / "classes.txt"
    if classes is None and not listed.is_file():
        raise DataError(f"{folder}: how many classes there are is not known: give `classes=N`, or write classes.txt")
    try:
        names = read_class_lines(listed.read_text(encoding="utf-8"), listed) if listed.is_file() else ()
    except UnicodeDecodeError as error:
        raise DataError(f"{listed}: not UTF-8 text ({error})") from error
    if classes is None:
        if not 1 <= len(names) <= IGNORED:
            raise DataError(f"{listed}: {len(names)} classes; maps of bytes have 1 to {IGNORED}")
        return names
    if not 1 <= classes <= IGNORED:
        raise DataError(f"{folder}: classes={classes}; maps of bytes have 1 to {IGNORED}")
    return tuple(names[k] if k < len(names) else f"class {k}" for k in range(classes))
