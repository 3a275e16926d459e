"""`folder:PATH`: one subfolder per class; or `train/` and `test/` (or `val/`), each with one subfolder per class.

A folder with images and no subfolders is unlabelled data.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.config.nearest import nearest_path
from isoflop.data.records import TEST_NAMES, Labels, Part, fingerprint_images, no_labels
from isoflop.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


class FolderRecords:
    """Image files, labelled by the folder in which they lie."""

    shard_sizes: NDArray[np.int64] | None = None

    def __init__(self, path: Path, part: Part) -> None:
        self.uri = f"folder:{path}"
        root = _root(path, part)
        is_apart = part == "test" and (path / "train").is_dir()
        classes = _subfolders(path / "train" if is_apart else root)  # a class may have no test image
        if unknown := set(_subfolders(root)) - set(classes):
            raise DataError(f"folder:{root}: class `{min(unknown)}` has no training images")
        files = [_images_below(root / name) for name in classes]
        if any(files):
            self.labels: Labels = np.repeat(np.arange(len(classes)), [len(found) for found in files])
        else:
            classes, files = [], [_images_below(root)]
            self.labels = no_labels(len(files[0]))
        names = [os.path.relpath(file, root) for found in files for file in found]
        if not names:
            raise DataError(f"folder:{root}: no images; expected one subfolder per class with image files inside")
        self.class_names = tuple(classes)
        self._root = str(root)
        self._names = np.asarray([os.fsencode(name) for name in names])  # one block: no Python list for workers to copy
        self.fingerprint = fingerprint_images(names, root)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return os.path.join(self._root, os.fsdecode(self._names[index]))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: Path) -> list[str]:
    """The image files in a folder and its subfolders, sorted; links to folders are not followed."""
    return sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def _root(path: Path, part: Part) -> Path:
    if not path.is_dir():
        raise DataError(f"folder:{path}: no such folder{nearest_path(path)}")
    for name in ("train",) if part == "train" else TEST_NAMES:
        if (path / name).is_dir():
            return path / name
    if part == "train":
        return path
    raise DataError(f"folder:{path}: no test part; expected a subfolder named {', '.join(TEST_NAMES)}")
