"""Decoded images and indexes kept on disk between processes: written once, then mapped into memory and shared."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.decode import DamagedImage, centre_box_of, decode_crop, read_header
from isoflop.data.quarantine import Damage, why
from isoflop.data.records import Records


def cache_directory() -> Path:
    """Where caches go: $ISOFLOP_CACHE, else $XDG_CACHE_HOME/isoflop, else ~/.cache/isoflop."""
    if own := os.environ.get("ISOFLOP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoflop"


def decoded_images(records: Records, image_size: int, channels: int) -> tuple[NDArray[np.uint8], list[Damage]]:
    """Every record's centre at `image_size`, uint8 (N, channels, s, s), and the damaged ones, which are black.

    Decoded once and mapped from the cache afterwards; kept in memory where the cache cannot be written.
    """
    path = cache_directory() / "decoded" / f"{records.fingerprint}-{image_size}px-{channels}c.npy"
    listing = path.with_suffix(".damaged.json")
    found: list[Damage] = []

    def make() -> NDArray[np.uint8]:
        images = np.zeros((len(records), channels, image_size, image_size), dtype=np.uint8)
        for index in range(len(records)):
            try:
                encoded = records.read(index)
                header = read_header(encoded)
                box = centre_box_of(header, image_size)
                images[index] = decode_crop(encoded, header, box, size=image_size, channels=channels).numpy()
            except (DamagedImage, OSError) as error:
                found.append(Damage(index, records.name(index), why(error)))
        _write_quietly(listing, lambda file: file.write(json.dumps(found).encode()))
        return images

    if not listing.exists():
        path.unlink(missing_ok=True)
    images = cached_array(path, make)
    if not found and listing.exists():
        found = [Damage(*row) for row in json.loads(listing.read_text())]
    return images, found


def cached_array(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array at `path`, mapped read-only; made by `make` and written first if it is not there or cut short."""
    if path.exists():
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            pass  # cut short by a full disk or a crash: made again below
    array = make()
    if _write_quietly(path, lambda file: np.save(file, array)):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return array


def _write_quietly(path: Path, write: Callable[[Any], object]) -> bool:
    """Writes a file in one step; False where that is not possible (a read-only or full disk)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                write(file)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        return False
    return True
