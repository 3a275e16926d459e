"""Batches of a run: step k uses positions [kB, (k+1)B) of the sample order, for any number of workers and ranks.

With a windowed order, the samples of a step are sorted by storage first, so that the parts of the ranks are in
different shards.

The state is the step: nothing is dropped or padded, batches may span epochs, and a run that starts at step k reads the
same samples as an uninterrupted run.
"""

import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isoflop.config import DataConfig
from isoflop.config.run import EARLIER
from isoflop.data.records import Damage, Quarantine
from isoflop.data.source import Source
from isoflop.data.transforms import draw_uniforms
from isoflop.errors import DataError


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
    """int64 (n,), or float32 (n, classes) where images may have several classes; of dense data, see `DenseSource`"""
    first: int = 0
    """the place of this part's first image in the global batch"""
    damages: tuple[Damage, ...] = ()
    """samples that could not be used and were replaced"""


def check_augmentation(source: Source, data: DataConfig) -> None:
    """Returns if the images of `source` can be augmented as `data` says; DataError, before anything is written."""
    randaugment = None if data.randaugment == EARLIER else data.randaugment  # a finished run of that time may be opened
    source.find_augmentation(data.augment, randaugment, data.interpolation)


class _Failure(NamedTuple):
    """What went wrong in making a batch, carried from a worker to the run in one line."""

    message: str


class _Batches(Dataset[Batch | _Failure]):
    """Batches by step; what `batches` iterates over."""

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        batch_size: int,
        augment: str,
        randaugment: str | None,
        interpolation: str,
        rank: int,
        world: int,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"a batch needs at least one image, not {batch_size}")
        if not 0 <= rank < world:
            raise DataError(f"rank {rank} is not one of {world} ranks")
        self._source, self._seed, self._batch_size = source, seed, batch_size
        self._augmentation = source.find_augmentation(augment, randaugment, interpolation)
        self._start, self._stop = rank_part(batch_size, rank, world)

    @property
    def batch_bytes(self) -> int:
        """What the images of a batch take, about; their labels take far less."""
        return (self._stop - self._start) * self._source.channels * self._source.image_size**2

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self._make(step)
        except DataError as error:
            return _Failure(str(error))
        except Exception as error:
            return _Failure(f"step {step} of {self._source.uri}: {type(error).__name__}: {error}")

    def _make(self, step: int) -> Batch:
        epochs, indices = self._locate(step)
        u = draw_uniforms(self._seed, epochs, indices)
        images, labels, damages = self._source.read_views(indices, self._augmentation, u)
        return Batch(step, epochs, indices, images, labels, self._start, damages)

    def _locate(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and indices of this rank's part of a step."""
        return locate_batch(self._source, self._seed, self._batch_size, step, self._start, self._stop)


def locate_batch(
    source: Source, seed: int, batch_size: int, step: int, start: int = 0, stop: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Epochs and indices of the samples of a step, or of those from place `start` up to `stop` in the global batch."""
    first, order, stop = step * batch_size, source.order, batch_size if stop is None else stop
    if not order.sorts_batches:
        return order.locate(np.arange(first + start, first + stop, dtype=np.int64), seed)
    epochs, indices = order.locate(np.arange(first, first + batch_size, dtype=np.int64), seed)
    mine = np.lexsort((indices, epochs))[start:stop]
    return epochs[mine], indices[mine]


def rank_part(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """Which images of a global batch are rank `rank`'s: from the first number up to the second.

    Parts are consecutive and of nearly equal size. They begin at even places (if there are two images a rank), so
    that the neighbours 2i and 2i+1, which Mixup and CutMix mix, are never apart.
    """
    grid = 2 if batch_size >= 2 * world else 1
    start, stop = (batch_size * r // world // grid * grid for r in (rank, rank + 1))
    return start, batch_size if rank + 1 == world else stop


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    stop_step: int,
    augment: str = "none",
    randaugment: str | None = None,
    interpolation: str = "bilinear",
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    quarantine: Quarantine | None = None,
) -> Iterator[Batch]:
    """The batches of steps start_step … stop_step-1 for one rank, in order.

    `batch_size` is the global one, of which a rank gets the part that `rank_part` says. `augment` is a name in
    `transforms.AUGMENTATIONS`, `randaugment` and `interpolation` are those of `data`. With `workers` processes the
    batches are made ahead of time; they are the same for any number of workers, and with 0 they are made in this
    process, without overhead.

    Damaged samples are replaced and put into `quarantine`, which raises DataError when they are too many. Of several
    ranks, each meets but a part of them, and finds it in `Batch.damages`, for the caller to put together. Whatever else
    goes wrong in a worker is a DataError of one line here.
    """
    dataset = _Batches(
        source,
        seed=seed,
        batch_size=batch_size,
        augment=augment,
        randaugment=randaugment,
        interpolation=interpolation,
        rank=rank,
        world=world,
    )
    steps = range(start_step, stop_step)
    made = map(dataset.__getitem__, steps) if workers == 0 else _in_workers(dataset, steps, workers)
    quarantine = Quarantine(len(source)) if quarantine is None else quarantine
    quarantine.add(source.damages)
    return _checked(made, quarantine if world == 1 else None)


def _checked(made: Iterator[Batch | _Failure], quarantine: Quarantine | None) -> Iterator[Batch]:
    for batch in made:
        if isinstance(batch, _Failure):
            raise DataError(batch.message)
        if batch.damages and quarantine is not None:
            quarantine.add(batch.damages)
        yield batch


SHARED_MEMORY = Path("/dev/shm")
_AHEAD = 2  # batches that each worker prepares: DataLoader's default


def _as_it_is(batch: Any) -> Any:
    """Keeps DataLoader from turning arrays into tensors and tuples into lists."""
    return batch


def _as_arrays(batch: Batch | _Failure) -> Any:
    """For a way through a pipe: PyTorch sends tensors through shared memory, and arrays as they are."""
    if isinstance(batch, _Failure):
        return batch
    return batch._replace(images=batch.images.numpy(), labels=batch.labels.numpy())  # type: ignore[arg-type]


def _as_tensors(batch: Batch | _Failure) -> Batch | _Failure:
    if isinstance(batch, _Failure) or isinstance(batch.images, Tensor):
        return batch
    return batch._replace(images=torch.from_numpy(batch.images), labels=torch.from_numpy(batch.labels))


def _fits_shared_memory(batch_bytes: int, workers: int) -> bool:
    """Whether the batches of all workers have room where PyTorch puts them; a container often has 64 MB, and a worker
    that runs out of it dies or waits for ever."""
    try:
        free = os.statvfs(SHARED_MEMORY)
    except OSError:
        return True  # another system
    return (_AHEAD + 1) * workers * batch_bytes <= free.f_bavail * free.f_frsize


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _ignore_stops(_worker: int) -> None:
    """Schedulers and terminals signal the whole group; what to do about it is the run's to decide, not a worker's."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@contextmanager
def _stops_blocked() -> Iterator[None]:
    """Workers that are started meanwhile begin with these signals blocked, until they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_workers(dataset: _Batches, steps: range, workers: int) -> Iterator[Batch | _Failure]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total")  # that is the user's choice
        fits = _fits_shared_memory(dataset.batch_bytes, workers)
        if not fits:
            warnings.warn(
                f"{SHARED_MEMORY} is too small for batches of {dataset.batch_bytes / 2**20:.0f} MB from {workers} "
                "workers: they come through pipes, which is slower; give the container more, as by "
                "`docker run --shm-size=8g`",
                stacklevel=2,
            )
        collate: Any = _as_it_is if fits else _as_arrays
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            collate_fn=collate,
            prefetch_factor=_AHEAD,
            worker_init_fn=_ignore_stops,
        )
        with _stops_blocked():
            made: Any = iter(loader)
    try:
        for step in steps:
            try:
                yield _as_tensors(next(made))
            except RuntimeError as error:  # a worker that was killed, most often for want of memory
                reason = str(error).splitlines()[0]
                raise DataError(f"a data worker died while making step {step} ({reason}); try fewer workers") from error
    finally:
        # Left to the garbage collector, queues may go before workers, which then wait for five seconds each.
        made._shutdown_workers()
        for worker in made._workers:
            worker.kill()  # one that hangs, and would hold this process at its end; terminate() is ignored


# Batches brought to the device before they are needed, and the time that the run waits for them.


_AHEAD_ON_DEVICE = 2  # batches on their way to the device while one is in use


class Feed:
    """Iterates over `batches` with images and labels on `device`; on a GPU, two batches ahead on a stream of their own.

    `seconds_waiting` is the time spent waiting for batches to be made. A batch counts as consumed when it is handed
    out, not when it is prefetched: the step that a checkpoint stores is the last one handed out.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = iter(batches), device
        self.seconds_waiting = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self._on_gpu() if self._device.type == "cuda" else self._on_cpu()

    def _on_cpu(self) -> Iterator[Batch]:
        while (batch := self._next()) is not None:
            yield batch._replace(images=batch.images.to(self._device), labels=batch.labels.to(self._device))

    def _on_gpu(self) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        ahead: deque[tuple[Batch, torch.cuda.Event]] = deque()
        is_exhausted = False
        while True:
            while not is_exhausted and len(ahead) <= _AHEAD_ON_DEVICE:
                batch = self._next()
                if batch is None:
                    is_exhausted = True
                    break
                # The pinned copies may be dropped at once: PyTorch keeps such memory until the copy has happened.
                with torch.cuda.stream(stream):
                    images = batch.images.pin_memory().to(self._device, non_blocking=True)
                    labels = batch.labels.pin_memory().to(self._device, non_blocking=True)
                    ahead.append((batch._replace(images=images, labels=labels), stream.record_event()))
            if not ahead:
                return
            batch, arrived = ahead.popleft()
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arrived)
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(current)  # its memory is not reused before the step that reads it is done
            yield batch

    def _next(self) -> Batch | None:
        began = time.perf_counter()
        batch = next(self._batches, None)
        self.seconds_waiting += time.perf_counter() - began
        return batch
