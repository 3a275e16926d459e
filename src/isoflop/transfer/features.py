"""Frozen features of a backbone: computed once, streamed to the cache, and memory-mapped from there.

The key of a cache entry contains the weights, the data, and the preprocessing. An interrupted computation is resumed.
If several processes compute the same features, one holds the unfinished file that can be resumed, the others write
their own files, and the first complete one is kept. Memory holds one block of images and features.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isoflop.data import Source
from isoflop.data.cache import crc32_of, opened, publish, remove_abandoned, tell_unwritable
from isoflop.data.decode import DECODING
from isoflop.errors import CheckpointError
from isoflop.models import Backbone
from isoflop.runs.files import cache_directory, private_path, read_json, sync, write_json
from isoflop.train.device import choose_device, normalize, to_device
from isoflop.transfer.backbones import Pretrained

BLOCK = 256  # images at a time
_SECONDS_BETWEEN_SYNCS = 10.0
_FEATURES, _STATE, _LOCK = "features.npy", "state.json", "lock"

OnProgress = Callable[[int, int], None]


def features_of(
    pretrained: Pretrained, source: Source, *, workers: int = 0, on_progress: OnProgress | None = None
) -> Tensor:
    """Pooled features float32 (N, D) of all images of `source`, in evaluation mode, mapped from the cache.

    `on_progress` is called with the numbers of images done and to do. They are kept in memory where the cache cannot be
    written. Raises CheckpointError for features that are not finite.
    """
    entry = cache_path(pretrained, source)
    shape = (len(source), pretrained.model.num_features)

    def load(folder: Path) -> Tensor | None:
        # Copy on write: torch wants arrays that it could write to.
        found = torch.from_numpy(np.load(folder / _FEATURES, mmap_mode="c", allow_pickle=False))
        return found if found.shape == shape and found.dtype == torch.float32 else None

    if (found := opened(entry, load)) is not None:
        return found
    try:
        with contextlib.closing(_Unfinished(entry, shape)) as unfinished:
            for block in _features(pretrained, source, unfinished.done, workers, on_progress):
                if (found := opened(entry, load)) is not None:  # another process was faster
                    unfinished.discard()
                    return found
                unfinished.append(block)
            if (found := publish(unfinished.complete(), entry, load)) is not None:
                return found
    except OSError as error:
        tell_unwritable(error)
    return torch.from_numpy(np.concatenate(list(_features(pretrained, source, 0, workers, on_progress))))


def cache_path(pretrained: Pretrained, source: Source) -> Path:
    """The entry of the cache that holds these features, or would."""
    shown = (DECODING, source.fingerprint, len(source), source.image_size, source.channels, source.mean, source.std)
    digest = hashlib.blake2b(repr((pretrained.fingerprint, shown)).encode(), digest_size=16)
    return cache_directory() / "features" / digest.hexdigest()


@torch.no_grad()
def extract(model: Backbone, images: Tensor, batch_size: int = BLOCK) -> Tensor:
    """Pooled features (n, D) of normalised float images (n, C, H, W), in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model.features(part).float() for part in torch.split(images, batch_size)])
    finally:
        model.train(was_training)


def _features(
    pretrained: Pretrained, source: Source, done: int, workers: int, on_progress: OnProgress | None
) -> Iterator[NDArray[np.float32]]:
    """The features (n, D) of samples `done` … N-1, block by block."""
    device = choose_device("auto")
    model = to_device(pretrained.model, device)
    for images in _blocks(source, done, workers):
        features = extract(model, normalize(images, source, device)).cpu().numpy()
        if not np.isfinite(features).all():
            raise CheckpointError(f"{pretrained.name}: its features are not finite numbers, so it cannot be judged")
        done += len(features)
        yield features
        if on_progress:
            on_progress(done, len(source))


class _Unfinished:
    """A file of features that grows by blocks, in a folder that becomes the entry `entry` when it is complete.

    The folder `.KEY.unfinished` can be continued by a later process; it is held by a lock that dies with its process.
    Where another one holds it, or there are no locks, the folder is private and removed at the end. `done` is the
    number of rows that are written. Raises OSError where that is not possible.
    """

    def __init__(self, entry: Path, shape: tuple[int, int]) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(entry.parent)
        self.folder = entry.with_name(f".{entry.name}.unfinished")
        self._lock = _locked(self.folder)
        if self._lock is None:
            self.folder = private_path(entry)
            self.folder.mkdir()
        self._header, self._row_bytes = _header(shape), 4 * shape[1]
        self.done, self._crc = self._found()
        self._file = (self.folder / _FEATURES).open("r+b" if self.done else "wb")
        if self.done:
            self._file.seek(len(self._header) + self.done * self._row_bytes)
            self._file.truncate()
        else:
            self._file.write(self._header)
        self._synced = time.monotonic()

    def _found(self) -> tuple[int, int]:
        """The rows that an interrupted process has left whole, and the CRC-32 of the file up to them."""
        path = self.folder / _FEATURES
        with contextlib.suppress(CheckpointError, FileNotFoundError):
            state = read_json(self.folder / _STATE, {"done": int, "crc32": int})
            size = len(self._header) + state["done"] * self._row_bytes
            if path.stat().st_size >= size and crc32_of(path, size) == state["crc32"]:
                return state["done"], state["crc32"]
        return 0, zlib.crc32(self._header)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Writes the next rows, and now and then syncs what is there."""
        content = np.ascontiguousarray(rows, dtype="<f4").tobytes()
        self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        self.done += len(rows)
        if self._lock is not None and time.monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
            self._file.flush()
            sync(self.folder / _FEATURES)
            write_json(self.folder / _STATE, {"done": self.done, "crc32": self._crc})
            self._synced = time.monotonic()

    def complete(self) -> Path:
        """The folder, with the features in it."""
        self._file.close()
        (self.folder / _STATE).unlink(missing_ok=True)
        return self.folder  # the lock stays: whoever made a new one here would believe to hold the folder

    def discard(self) -> None:
        """Removes the folder, while it is held."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Lets go of what a later process may continue, and removes what none can."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._lock is None:
            self.discard()
        else:
            os.close(self._lock)


def _locked(folder: Path) -> int | None:
    """The handle of a lock on `folder` that this process now holds; None where another holds it, or locks fail."""
    path = folder / _LOCK
    try:
        folder.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:  # completed by another process in this moment
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path), os.fstat(handle)):
            return handle
    os.close(handle)
    return None


def _header(shape: tuple[int, int]) -> bytes:
    """What a NumPy file of float32 begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


class _Blocks(Dataset[Tensor]):
    """The images of consecutive samples."""

    def __init__(self, source: Source, start: int) -> None:
        self.source, self.start = source, start

    def __len__(self) -> int:
        return -(-(len(self.source) - self.start) // BLOCK)

    def __getitem__(self, block: int) -> Tensor:
        first = self.start + block * BLOCK
        return self.source.read(np.arange(first, min(first + BLOCK, len(self.source)), dtype=np.int64))[0]


def _blocks(source: Source, start: int, workers: int) -> Iterator[Tensor]:
    blocks = _Blocks(source, start)
    if not workers:
        return (blocks[k] for k in range(len(blocks)))
    return iter(DataLoader(blocks, batch_size=None, num_workers=workers))
