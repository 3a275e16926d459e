"""Damaged samples: counted, listed with reasons, replaced by others, and too many of them stop the run."""

import json
from pathlib import Path
from typing import NamedTuple

from isoflop.errors import DataError

ALLOWED_SHARE = 0.001
"""Of a data set's samples, so many may be damaged before a run stops."""


class Damage(NamedTuple):
    """One sample that cannot be used."""

    sample: int
    """its number among the records, or -1 if it has none"""
    name: str
    reason: str


def why(error: Exception) -> str:
    """The reason that an error gives, without the name of the file, which is told already."""
    return str(getattr(error, "strerror", None) or error)


class Quarantine:
    """The damaged samples that a run has met. Raises DataError when they are more than a share of the data."""

    def __init__(self, num_samples: int, allowed_share: float = ALLOWED_SHARE) -> None:
        self.num_samples, self.allowed_share = num_samples, allowed_share
        self.found: dict[int, Damage] = {}

    def save(self, path: Path) -> None:
        """Writes the list as JSON lines {sample, name, reason}, in the order in which the samples were met."""
        path.write_text("".join(json.dumps(damage._asdict()) + "\n" for damage in self.found.values()))

    def add(self, damages: tuple[Damage, ...]) -> None:
        """Takes in what a batch reports; a sample that is met again counts once."""
        for damage in damages:
            self.found.setdefault(damage.sample, damage)
        if damages and len(self.found) > self.allowed_share * self.num_samples:
            first = next(iter(self.found.values()))
            raise DataError(
                f"{len(self.found)} of {self.num_samples} images are damaged, more than the allowed "
                f"{self.allowed_share:.1%}; the first: {first.name}: {first.reason}; "
                "`isoflop data check` lists them all"
            )
