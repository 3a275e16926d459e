"""What is watched while a run goes on: losses that leap, and processes that no longer move."""

from __future__ import annotations

import faulthandler
import os
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from isoflop.config.scale import ENOUGH_LOSSES


def robust_z(loss: float, before: Sequence[float]) -> float:
    """How many standard deviations `loss` lies above the losses `before`, by their median and absolute deviation.

    0 while there are too few to judge by. Both are blind to the outliers that they are to find: 1.4826 × the median
    absolute deviation is the standard deviation of a normal distribution.
    """
    if len(before) < ENOUGH_LOSSES:
        return 0.0
    middle = statistics.median(before)
    spread = 1.4826 * statistics.median(abs(x - middle) for x in before)
    return (loss - middle) / max(spread, 1e-6 * abs(middle), 1e-12)


class Watchdog:
    """Writes the stacks of this process to `stuck/rank-K.txt` when `beat` is not called for `seconds`.

    A process of several (`ends`) then ends itself, so that torchrun starts all again. The stacks are written by a
    thread of C that needs nothing of what may be stuck.
    """

    def __init__(self, folder: Path, rank: int, seconds: float, *, ends: bool) -> None:
        self._seconds, self._ends = seconds, ends
        self._path = folder / "stuck" / f"rank-{rank}.txt"
        self._file: IO[str] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
            self._file.write(
                f"rank {rank}, process {os.getpid()} on {platform.node()}, made no step for {seconds:g} s\n"
            )
            self._file.flush()
        except OSError:  # a full disk; the run has other ways of saying so
            return
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
            self._file.close()
            with suppress(OSError):  # failing storage, or the folder still has another rank's file, or is gone with it
                if "Timeout" not in self._path.read_text(encoding="utf-8"):
                    self._path.unlink()
                    self._path.parent.rmdir()
