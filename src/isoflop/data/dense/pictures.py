"""Whole pictures from files, of any size."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.data.decode import DamagedImage, decode_numbers, decode_whole, read_header
from isoflop.data.quarantine import why
from isoflop.data.records import Encoded, read_image_file, read_surely
from isoflop.errors import DataError


def read_picture(records: Encoded, index: int) -> NDArray[np.uint8]:
    """Pixels uint8 (height, width, 3). Raises DamagedImage with the name, DataError where the storage fails."""
    try:
        encoded = read_surely(records, index)
        return decode_whole(encoded, read_header(encoded))
    except DamagedImage as error:
        raise DamagedImage(f"{records.name(index)}: {error}") from error


def read_map(path: Path) -> NDArray[np.uint8]:
    """The numbers (height, width) in a PNG of one channel or with a palette.

    Raises DamagedImage with the path, DataError where the storage fails.
    """
    try:
        numbers = decode_numbers(read_image_file(path))
    except (DamagedImage, OSError) as error:
        kind = DataError if getattr(error, "errno", None) not in (None, errno.ENOENT) else DamagedImage
        raise kind(f"{path}: {why(error)}") from error
    if numbers.max(initial=0) > 255:
        raise DamagedImage(f"{path}: class {numbers.max()}, but maps of classes have at most 256")
    return numbers.astype(np.uint8)


def file_fingerprint(path: Path, *more: str) -> str:
    """A hash of a file's content and of `more`."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8)
    digest.update(repr(more).encode())
    return digest.hexdigest()
