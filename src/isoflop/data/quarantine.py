"""Damaged samples: counted, listed with reasons, replaced by others, and too many of them stop the run."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isoflop.data.keyed import derive_key, words
from isoflop.errors import DataError
from isoflop.escapes import printable
from isoflop.runs.files import write_atomically

REPLACEMENTS = 16
ALLOWED_SHARE = 0.001
"""Of a data set's samples, so many may be damaged before a run stops."""


class Damage(NamedTuple):
    """One sample that cannot be used."""

    sample: int
    """its number among the records, or -1 if it has none"""
    name: str
    reason: str

    @property
    def line(self) -> str:
        """Name and reason, on one line whatever the name is made of."""
        return f"{printable(self.name)}: {self.reason}"


class Note(NamedTuple):
    """What a data set holds and is not used, or what was guessed about it. It harms no run, but is never silent.

    `Records.notes` has them; `isoflop data check` prints each, a run prints all in one line.
    """

    what: str
    """"hidden files", "the column `label` is taken for the class" """
    names: tuple[str, ...] = ()
    """of what was left out, at least the first; none for a guess"""
    total: int = 0
    """how many were left out"""

    def line(self, most: int = 20) -> str:
        """The note on one line, with at most `most` names."""
        if not self.total:
            return printable(self.what)
        shown = [printable(name) for name in self.names[:most]] + ["…"] * (self.total > min(most, len(self.names)))
        return f"{printable(self.what)} left out: {self.total:,}" + (f" ({', '.join(shown)})" if most else "")


def why(error: Exception) -> str:
    """The reason that an error gives, without the name of the file, which is told already."""
    return str(getattr(error, "strerror", None) or error)


def replacements(index: int, num_samples: int) -> list[int]:
    """The samples that are tried in turn in the place of the damaged sample `index`: always the same."""
    return [
        int(word) % num_samples for word in words(derive_key("replacement"), 0, np.asarray([index]), REPLACEMENTS)[0]
    ]


class Quarantine:
    """The damaged samples that a run has met. Raises DataError when they are more than a share of the data."""

    def __init__(self, num_samples: int, allowed_share: float = ALLOWED_SHARE) -> None:
        self.num_samples, self.allowed_share = num_samples, allowed_share
        self.found: dict[str, Damage] = {}

    def save(self, path: Path) -> None:
        """Adds the list to a file of JSON lines {sample, name, reason}, in the order in which the samples were met.

        What an earlier attempt at the run has met stays there.
        """
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines += (json.dumps(damage._asdict()) for damage in self.found.values())
        write_atomically(path, "".join(f"{line}\n" for line in dict.fromkeys(lines)))

    def add(self, damages: tuple[Damage, ...]) -> None:
        """Takes in what a batch reports; a sample that is met again counts once."""
        for damage in damages:
            self.found.setdefault(damage.name, damage)
        if damages and len(self.found) > self.allowed_share * self.num_samples:
            first = next(iter(self.found.values()))
            raise DataError(
                f"{len(self.found)} of {self.num_samples} images are damaged, more than the allowed "
                f"{self.allowed_share:.1%}; the first: {first.line}; "
                "`isoflop data check` lists them all"
            )
