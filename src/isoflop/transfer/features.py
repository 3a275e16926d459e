"""Frozen features of a backbone over a source: computed once, streamed to the disk, and mapped from there.

A cache file is named after everything that decides its content: the weights, the data, and how images are shown. What
was interrupted goes on where it was. Memory holds a block of images and features, however many there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isoflop.data import Source
from isoflop.data.cache import cache_directory
from isoflop.errors import CheckpointError
from isoflop.models import Backbone
from isoflop.runs.files import write_json
from isoflop.train.device import choose_device, to_device, to_unit_range
from isoflop.transfer.backbones import Pretrained

BLOCK = 256  # images at a time
_SECONDS_BETWEEN_SYNCS = 10.0

OnProgress = Callable[[int, int], None]


def features_of(
    pretrained: Pretrained, source: Source, *, workers: int = 0, on_progress: OnProgress | None = None
) -> Tensor:
    """Pooled features float32 (N, D) of all images of `source`, in evaluation mode, mapped from the cache.

    `on_progress` is called with the numbers of images done and to do. They are kept in memory where the cache cannot be
    written. Raises CheckpointError for features that are not finite.
    """
    path = cache_path(pretrained, source)
    shape = (len(source), pretrained.model.num_features)
    if (kept := _kept(path, shape)) is not None:
        return kept
    partial, state = path.with_suffix(".part.npy"), path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _done(state, partial, shape)
        mode: Any = "r+" if done else "w+"
        rows = np.lib.format.open_memmap(partial, mode=mode, dtype=np.float32, shape=None if done else shape)
    except OSError:
        return torch.from_numpy(_filled(np.empty(shape, np.float32), pretrained, source, 0, workers, on_progress, None))

    def sync(count: int) -> None:
        rows.flush()
        write_json(state, {"done": count})

    _filled(rows, pretrained, source, done, workers, on_progress, sync)
    rows.flush()
    os.replace(partial, path)
    state.unlink(missing_ok=True)
    return _mapped(path)


def cache_path(pretrained: Pretrained, source: Source) -> Path:
    """Where these features lie, or would."""
    shown = (source.fingerprint, len(source), source.image_size, source.channels, source.mean, source.std)
    digest = hashlib.blake2b(repr((pretrained.fingerprint, shown)).encode(), digest_size=16)
    return cache_directory() / "features" / f"{digest.hexdigest()}.npy"


@torch.no_grad()
def extract(model: Backbone, images: Tensor, batch_size: int = BLOCK) -> Tensor:
    """Pooled features (n, D) of normalised float images (n, C, H, W), in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model.features(part).float() for part in torch.split(images, batch_size)])
    finally:
        model.train(was_training)


def _filled(
    rows: NDArray[np.float32],
    pretrained: Pretrained,
    source: Source,
    done: int,
    workers: int,
    on_progress: OnProgress | None,
    sync: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    """`rows` with the features of samples `done` … N-1 written to them."""
    device = choose_device("auto")
    model = to_device(pretrained.model, device)
    synced = time.monotonic()
    for images in _blocks(source, done, workers):
        features = extract(model, to_unit_range(images, source, device)).cpu().numpy()
        if not np.isfinite(features).all():
            raise CheckpointError(f"{pretrained.name}: its features are not finite numbers, so it cannot be judged")
        rows[done : done + len(features)] = features
        done += len(features)
        if on_progress:
            on_progress(done, len(source))
        if sync and time.monotonic() - synced > _SECONDS_BETWEEN_SYNCS:
            sync(done)
            synced = time.monotonic()
    return rows


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


def _done(state: Path, partial: Path, shape: tuple[int, int]) -> int:
    """How many rows of the partial file are known to be on the disk."""
    try:
        done = int(json.loads(state.read_text())["done"])
        found = np.load(partial, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, KeyError):
        return 0
    return done if found == shape else 0


def _kept(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The features in the cache; None where there are none, or their file is damaged and must be made again."""
    try:
        found = _mapped(path)
    except (OSError, ValueError):
        return None
    return found if found.shape == shape and found.dtype == torch.float32 else None


def _mapped(path: Path) -> Tensor:
    # Copy on write: torch wants arrays that it could write to.
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
