"""`folder:PATH`: one subfolder per class; or `train/` and `test/` (or `val/`), each with one subfolder per class."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from isoflop.errors import DataError

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
_TEST_NAMES = ("test", "val", "validation")


class FolderRecords:
    """Image files, labelled by the folder in which they lie."""

    def __init__(self, path: Path, part: Literal["train", "test"]) -> None:
        self.uri = f"folder:{path}"
        root = _root(path, part)
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(f for f in (root / name).rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES and f.is_file())
            files += found
            labels += [label] * len(found)
        if not files:
            raise DataError(f"folder:{root}: no images; expected one subfolder per class with image files inside")
        self.class_names = tuple(classes)
        self.labels = np.asarray(labels, dtype=np.int64)
        self._root = root
        # one block, no Python list to copy
        self._names = np.asarray([str(f.relative_to(root)).encode() for f in files])
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return str(self._root / self._names[index].decode())


def _root(path: Path, part: str) -> Path:
    if not path.is_dir():
        raise DataError(f"folder:{path}: no such folder")
    names = ("train",) if part == "train" else _TEST_NAMES
    for name in names:
        if (path / name).is_dir():
            return path / name
    if part == "train":
        return path
    raise DataError(f"folder:{path}: no test split; expected a subfolder named {', '.join(_TEST_NAMES)}")
