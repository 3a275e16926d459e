"""What is watched while a run goes on: losses that leap, and processes that no longer move."""

from __future__ import annotations

import faulthandler
import os
import platform
import statistics
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from isoflop.config.scale import ENOUGH_LOSSES

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
            told = f"{self._path}: cannot write: {error.strerror}; a process that is stuck may leave no stack"
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
