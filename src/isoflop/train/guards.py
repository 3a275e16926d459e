"""Guards of a run: loss spikes with rollback, and a watchdog for stuck processes."""

from __future__ import annotations

import faulthandler
import os
import platform
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from torch import Tensor

from isoflop.config.run import ENOUGH_LOSSES, GuardsConfig
from isoflop.objectives import Objective
from isoflop.runs.journal import Row
from isoflop.train.checkpoints import Progress, pack, unpack

LEAST_SPREAD = 0.02  # of losses, as a share of their median: below it nothing is a leap


def robust_z(loss: float, before: Sequence[float]) -> float:
    """How many standard deviations `loss` lies above the losses `before`, by their median and absolute deviation.

    0 while there are too few to judge by. Both are blind to the outliers that they are to find: 1.4826 × the median
    absolute deviation is the standard deviation of a normal distribution. The deviation counts as no less than 2 % of
    the median: at the start all losses are nearly ln(classes), and what is learnt then moves them by more than chance
    did before.
    """
    if len(before) < ENOUGH_LOSSES:
        return 0.0
    middle = statistics.median(before)
    spread = 1.4826 * statistics.median(abs(x - middle) for x in before)
    return (loss - middle) / max(spread, LEAST_SPREAD * abs(middle), 1e-12)


class Watchdog:
    """Writes the stacks of this process to `stuck/rank-K.txt` when `beat` is not called for `seconds`.

    A process of several (`ends`) then ends itself, so that torchrun starts all again. The stacks are written by a
    thread of C that needs nothing of what may be stuck.
    """

    def __init__(self, folder: Path, rank: int, seconds: float, *, ends: bool) -> None:
        self._seconds, self._ends = seconds, ends
        self._path = folder / "stuck" / f"rank-{rank}.txt"
        self._file: IO[bytes] | None = None
        text = f"rank {rank}, process {os.getpid()} on {platform.node()}, made no step for {seconds:g} s\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb", buffering=0)  # nothing is left to be written when it is closed
            self._file.write(text.encode())
        except OSError as error:
            told = f"{self._path}: cannot write: {error.strerror}; a stuck process may not write its stack"
            warnings.warn(told, stacklevel=2)
        if self._file:
            self._arm()

    def beat(self) -> None:
        """Says that the process moves; costs nothing more than once in a tenth of the patience."""
        if self._file and time.monotonic() - self._armed > self._seconds / 10:
            self._arm()

    def _arm(self) -> None:
        self._armed = time.monotonic()
        assert self._file is not None
        faulthandler.dump_traceback_later(self._seconds, exit=self._ends, file=self._file)

    def close(self) -> None:
        """Ends the watch; the file stays only if there was something to report."""
        faulthandler.cancel_dump_traceback_later()
        if self._file:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):  # failing storage, or the folder still has another rank's file, or is gone with it
                if "Timeout" not in self._path.read_text(encoding="utf-8", errors="replace"):
                    self._path.unlink()
                    self._path.parent.rmdir()


# Going back when the loss leaps: a copy of the whole state is kept at hand, and the samples since are passed over.


class Rollback:
    """Watches the losses of a run, where `config` asks for it. All ranks are told the same loss and decide alike.

    `snapshot`, if there is one, is the packed tensors and the progress to which the run can go back. A resumed run can
    go back no further than to where it was resumed: that is why checkpoints are of the snapshot.
    """

    def __init__(self, config: GuardsConfig, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        self.config = config
        self.objective = objective
        self.optimizer = optimizer
        self.snapshot: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def take(self, progress: Progress) -> None:
        """Copies the present state."""
        if self.config.spike:
            tensors = pack(self.objective, self.optimizer)
            self.snapshot = ({name: t.detach().clone() for name, t in tensors.items()}, progress.to_dict())

    def leap(self, loss: float, progress: Progress) -> float | None:
        """By how many robust standard deviations `loss` leapt, or None if it did not and belongs to the others now."""
        if not self.config.spike:
            return None
        z = robust_z(loss, progress.recent)
        if z > self.config.spike:
            return z
        progress.recent = [*progress.recent, loss][-self.config.window :]
        return None

    def go_back(self, progress: Progress) -> Row:
        """Puts the snapshot back, `progress` in place, and passes over the samples since; the journal's row of it."""
        assert self.snapshot is not None
        tensors, state = self.snapshot
        first, count = int(state["step"]), progress.step - int(state["step"])
        unpack({name: t.clone() for name, t in tensors.items()}, self.objective, self.optimizer)
        seconds = progress.seconds
        for name, value in asdict(Progress(**state)).items():
            setattr(progress, name, value)
        progress.seconds = seconds
        progress.skipped = [*progress.skipped, [first, count]]
        self.snapshot = (tensors, progress.to_dict())
        return {"kind": "rollback", "step": first, "from": first + count}


# Being asked to make room: SIGTERM and SIGUSR1, which schedulers send some time before they kill.


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75
"""The exit status of a run that was asked to stop: EX_TEMPFAIL, "try again later". Schedulers requeue on it."""


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether one of `SIGNALS` has come to this process. For the main thread."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
