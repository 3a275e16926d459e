"""What an attempt writes down about itself: rows of the journal, boards, the status, the evidence when it diverges.

Rank 0 alone writes; of the others, every call does nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.config import RunConfig
from isoflop.errors import CheckpointError
from isoflop.runs.directory import Status, write_status
from isoflop.runs.files import write_json
from isoflop.runs.journal import JournalWriter, Row, warn_of_damage
from isoflop.train.boards import Boards
from isoflop.train.identity import environment, warn_of_other_versions
from isoflop.train.state import Progress

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


class Record:
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
                warnings.warn(f"{error}; training goes on", stacklevel=2)
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
