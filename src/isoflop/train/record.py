"""The records of an attempt: rows of the journal, boards, the status, and details of a divergence.

Only rank 0 writes; on other ranks, every call does nothing.
"""

from __future__ import annotations

import math
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.config import RunConfig
from isoflop.errors import CheckpointError
from isoflop.runs.directory import Status, write_status
from isoflop.runs.files import write_json
from isoflop.runs.journal import JournalWriter, Row, decode_row, warn_of_damage
from isoflop.train.boards import Boards
from isoflop.train.checkpoints import Progress
from isoflop.train.device import matrix_rate
from isoflop.train.identity import environment, warn_of_other_versions

OnRow = Callable[[Row], None]


def train_row(progress: Progress, batch_size: int, *, learning_rate: float, gradient_norm: float) -> Row:
    """The row of the steps since the last one, after which the next row begins: `loss` is their mean."""
    counted = progress.step - progress.since - progress.missed
    row = {
        "kind": "train",
        "step": progress.step,
        "since": progress.since,
        "images": progress.step * batch_size,
        "samples": progress.samples,
        "loss": progress.loss_sum / counted if counted else math.nan,
        "lr": learning_rate,
        "gradient_norm": gradient_norm,
        "seconds": round(progress.seconds, 4),
    }
    if progress.nonfinite:
        row["nonfinite"] = progress.nonfinite
    progress.since, progress.loss_sum, progress.missed = progress.step, 0.0, 0
    return row


class AttemptLog:
    """Writes in the `directory` of a run. `on_row` hears of each row about training."""

    def __init__(self, config: RunConfig, directory: Path, *, is_first: bool, on_row: OnRow | None) -> None:
        self._config = config
        self._directory = directory
        self._is_first = is_first
        self._on_row = on_row
        self._journal: JournalWriter | None = None
        self._boards: Boards | None = None

    def open(self, step: int, origin: str) -> None:
        """Begins the attempt's own part, at step `step` of what it found at `origin`."""
        if self._is_first:
            machine = environment()
            warn_of_damage(self._directory)
            warn_of_other_versions(self._directory, machine)
            self._journal = JournalWriter(self._directory, step, origin, environment=machine)
            self._boards = Boards(self._config, self._directory, step)

    def write(self, row: Row) -> None:
        """Adds a row."""
        if not self._journal:
            return
        self._journal.write(row)
        if row["kind"] != "train":
            return
        if self._boards:
            self._boards.write(row)
        if self._on_row:
            self._on_row(row)

    def sync(self) -> None:
        """Returns when every row has reached the disk; OSError if rows could not be written."""
        if self._journal:
            self._journal.sync()

    def close(self) -> None:
        """Ends journal and boards; OSError if rows could not be written."""
        if self._journal:
            self._journal.close()
        if self._boards:
            self._boards.close()

    def status(self, state: str, progress: Progress, **more: Any) -> Status:
        """Replaces `status.json`, and returns what it says. Storage that refuses it is no reason to end a run that goes
        on; else CheckpointError."""
        status = Status(state, progress.step, self._config.steps, progress.seconds, **more)
        if self._is_first:
            try:
                write_status(self._directory, status)
            except CheckpointError as error:
                if state != "running":
                    raise
                warnings.warn(f"{error}; training continues", stacklevel=2)
        return status

    def divergence(self, what: str, progress: Progress, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> None:
        """Leaves the evidence in `diverged.json`: what happened, and the samples of the step at which it did."""
        if not self._is_first:
            return
        evidence = {
            "what": what,
            "step": progress.step,
            "learning_rate": self._config.optim.learning_rate,
            "recent_losses": progress.recent,
            "skipped": progress.skipped,
            "nonfinite": progress.nonfinite,
            "samples": [[int(e), int(i)] for e, i in zip(epochs, indices, strict=True)],
        }
        write_json(self._directory / "diverged.json", evidence)


# How well the machine is used: what a row of the journal says beside loss and learning rate.
#
# `images_per_second` since the row before; `mfu`, the model's FLOPs over what the devices could do at most;
# `memory_bytes`, the peak on one device (of a CPU: of this process); `wall`, seconds of this attempt; `goodput`,
# seconds
# that led to the present weights over the seconds of all attempts; `device_hours` and `energy_kwh` of all attempts
# (watts
# by the data sheet, 100 W assumed of a CPU, nothing for hosts and cooling).


MEASURED = frozenset(
    {
        "seconds",
        "data_wait",
        "images_per_second",
        "mfu",
        "memory_bytes",
        "wall",
        "goodput",
        "device_hours",
        "energy_kwh",
    }
)
"""The fields of a row that two equal runs may differ in."""


class Meters:
    """Measures one attempt, on rank 0 for all devices; `began` is when it began, by `time.perf_counter`."""

    def __init__(
        self,
        directory: Path,
        *,
        flops_per_image: float,
        device: torch.device,
        devices: int,
        began: float,
    ) -> None:
        self.flops_per_image = flops_per_image
        self.device = device
        self.devices = devices
        self.peak, self.watts = matrix_rate(device)
        self.before = wall_of_attempts(directory)
        self.began = began
        self.images = 0
        self.since = time.perf_counter()

    def read(self, images: int, seconds: float) -> dict[str, float]:
        """The fields of a row, after `images` of the run; `seconds` of training led to the present weights."""
        now = time.perf_counter()
        rate = (images - self.images) / max(now - self.since, 1e-9)
        wall = now - self.began
        total = self.before + wall
        hours = total * self.devices / 3600
        return {
            "images_per_second": _short(rate),
            "mfu": _short(rate * self.flops_per_image / (self.peak * self.devices)),
            "memory_bytes": peak_memory(self.device),
            "wall": round(wall, 3),
            "goodput": _short(min(1.0, seconds / total)),
            "device_hours": _short(hours),
            "energy_kwh": _short(hours * self.watts / 1000),
        }

    def resume(self, images: int) -> None:
        """Training goes on from `images`: what was done since `read` (evaluation, writing) is not in the next rate."""
        self.images, self.since = images, time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wall_of_attempts(directory: Path) -> float:
    """The seconds that the earlier attempts at the run in `directory` and at its pretraining took, as far as their last
    rows tell."""
    attempts = [*directory.glob("attempts/*"), *directory.glob("pretraining/attempts/*")]
    return sum(_last_wall(folder) for folder in attempts if folder.name.isdigit())


def _last_wall(attempt: Path) -> float:
    for file in sorted(attempt.glob("metrics-*.jsonl"), reverse=True):
        with file.open("rb") as text:
            text.seek(max(0, file.stat().st_size - 16_384))
            for line in reversed(text.read().splitlines()):
                wall = _wall(line)
                if wall is not None:
                    return wall
    return 0.0


def _wall(line: bytes) -> float | None:
    row = decode_row(line)  # None where it is torn, or cut by where reading began
    return float(row["wall"]) if row and "wall" in row else None


def _short(value: float) -> float:
    """Four significant digits: more would be noise, a million times."""
    return float(f"{value:.4g}")
