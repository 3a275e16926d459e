"""Batches brought to the device before they are needed, and the time that the run waits for them."""

import time
from collections import deque
from collections.abc import Iterator

import torch

from isoflop.data.loader import Batch

_AHEAD = 2  # batches on their way to the device while one is in use


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
            while not is_exhausted and len(ahead) <= _AHEAD:
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
