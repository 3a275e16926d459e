"""Batches of a run: step k is positions [kB, (k+1)B) of the sample order, whatever the number of workers and ranks.

The whole state is the step: nothing is dropped, nothing padded, batches may straddle epochs, and a run that starts at
step k reads exactly what the uninterrupted run would have read.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isoflop.data.augment import crop_flip
from isoflop.data.order import locate
from isoflop.data.source import Source
from isoflop.errors import DataError

_AUGMENTATIONS: dict[str, Callable[..., Tensor] | None] = {"none": None, "crop_flip": crop_flip}


class Batch(NamedTuple):
    """One rank's part of one step."""

    step: int
    epochs: NDArray[np.int64]
    """(n,)"""
    indices: NDArray[np.int64]
    """(n,), the samples' numbers in the source"""
    images: Tensor
    """uint8 (n, channels, size, size)"""
    labels: Tensor
    """int64 (n,)"""


class Batches(Dataset[Batch]):
    """Batches by step; what `batches` iterates over."""

    def __init__(self, source: Source, *, seed: int, batch_size: int, augment: str, rank: int, world: int) -> None:
        if augment not in _AUGMENTATIONS:
            raise DataError(f"unknown augmentation `{augment}`; there is {', '.join(_AUGMENTATIONS)}")
        if batch_size < 1:
            raise DataError(f"a batch needs at least one image, not {batch_size}")
        if not 0 <= rank < world:
            raise DataError(f"rank {rank} is not one of {world} ranks")
        self._source, self._seed, self._augment = source, seed, _AUGMENTATIONS[augment]
        self._batch_size = batch_size
        # Consecutive ranks hold consecutive parts of the batch; the parts differ by at most one image.
        self._start, self._stop = batch_size * rank // world, batch_size * (rank + 1) // world

    def __getitem__(self, step: int) -> Batch:
        first = step * self._batch_size
        positions = np.arange(first + self._start, first + self._stop, dtype=np.int64)
        epochs, indices = locate(positions, len(self._source), self._seed)
        images, labels = self._source.read(indices)
        if self._augment is not None:
            images = self._augment(images, seed=self._seed, epochs=epochs, indices=indices)
        return Batch(step, epochs, indices, images, labels)


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    stop_step: int,
    augment: str = "none",
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """The batches of steps start_step … stop_step-1 for one rank, in order.

    `batch_size` is the global one: of each step's images, rank r gets those between ⌊B·r/world⌋ and ⌊B·(r+1)/world⌋.
    `augment` is "none" or "crop_flip". With `workers` processes the batches are made ahead of time; they are the same
    for any number of workers, and with 0 they are made in this process, without overhead.
    """
    dataset = Batches(source, seed=seed, batch_size=batch_size, augment=augment, rank=rank, world=world)
    steps = range(start_step, stop_step)
    if workers == 0:
        return map(dataset.__getitem__, steps)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total")  # that is the user's choice
        return iter(DataLoader(dataset, batch_size=None, sampler=steps, num_workers=workers))
