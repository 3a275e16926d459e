"""How long the parts of a study took, by the clock, over all attempts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

from isoflop.errors import CheckpointError, StudyError
from isoflop.runs.files import read_json, write_json

FILE = "times.json"
PARTS = ("preparation", "ladder", "answer", "evaluation")
"""Start-up, data and prices; runs, the waiting of workers and the fits between stages; training of the answers; fits,
test, transfer and the report."""


class Times:
    """A stopwatch for the parts of a study, which begins with the first. `now` is in seconds of a steady clock.

    Attributes:
        seconds: of each part. stages: of the ladder, at the end of each of its stages.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.part = PARTS[0]
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.stages: list[float] = []
        self._since = now()

    @property
    def total(self) -> float:
        """Seconds of all parts until now."""
        self._count()
        return sum(self.seconds.values())

    def begin(self, part: str) -> None:
        """From now on time is that of `part`."""
        self._count()
        self.part = part

    def stage(self, number: int) -> float:
        """Seconds of the ladder at the end of its stage `number` (from 1), which is now, or was in an earlier
        attempt."""
        self._count()
        if len(self.stages) < number:
            self.stages.append(self.seconds["ladder"])
        return self.stages[number - 1]

    def add_earlier(self, directory: Path) -> None:
        """Adds what earlier attempts at the study in `directory` have written."""
        if not (directory / FILE).exists():
            return
        try:
            found = read_json(directory / FILE, {"seconds": dict, "stages": list})
            earlier = {part: float(found["seconds"].get(part, 0.0)) for part in PARTS}
            self.stages = [float(seconds) for seconds in found["stages"]]
        except (CheckpointError, TypeError, ValueError):
            warnings.warn(f"{directory / FILE}: damaged; the hours of earlier attempts are not counted", stacklevel=2)
            return
        for part, seconds in earlier.items():
            self.seconds[part] += seconds

    def write(self, directory: Path) -> None:
        """Keeps what was counted until now; StudyError when the storage refuses."""
        self._count()
        rounded = {part: round(seconds, 3) for part, seconds in self.seconds.items()}
        try:
            write_json(directory / FILE, {"seconds": rounded, "stages": self.stages})
        except OSError as error:
            raise StudyError(f"{directory / FILE}: cannot write: {error.strerror}") from error

    def _count(self) -> None:
        now = self.now()
        self.seconds[self.part] += now - self._since
        self._since = now
