"""Decoded images kept on disk between processes: written once, then mapped into memory and shared."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def cache_directory() -> Path:
    """Where caches go: $ISOFLOP_CACHE, else $XDG_CACHE_HOME/isoflop, else ~/.cache/isoflop."""
    if own := os.environ.get("ISOFLOP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoflop"


def cached_array(key: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The array that `make` returns, read-only; mapped from the cache if it was made before under the same `key`.

    Where the cache cannot be written (a read-only or full disk), the array is simply kept in memory.
    """
    path = cache_directory() / "decoded" / f"{key}.npy"
    if path.exists():
        try:
            return _map(path)
        except (OSError, ValueError):
            path.unlink(missing_ok=True)  # cut short by a full disk or a crash: made again below
    array = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.save(file, array)
        os.replace(file.name, path)
        return _map(path)
    except OSError:
        return array


def _map(path: Path) -> NDArray[np.uint8]:
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
