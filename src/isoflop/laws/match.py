"""Do two families match at equal compute? The runs of one against the frontier law of the other, with an interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.checks import positive_columns
from isoflop.laws.frontier import FrontierLaw
from isoflop.laws.records import Record


@dataclass(frozen=True)
class Match(Record):
    """Runs of one family measured against the frontier of another, in the units of the loss (or error).

    Attributes:
        compute, measured, expected: each run, and what the frontier's law gives at its compute.
        differences: measured - expected; negative is better than the frontier.
        intervals: (lo, hi) of each difference at `level`.
        mean, mean_interval: over the runs; the law's error is common to all of them and is not averaged away.
        matched: whether 0 lies inside the interval of the mean.
        statement: the same in words.
    """

    compute: tuple[float, ...]
    measured: tuple[float, ...]
    expected: tuple[float, ...]
    differences: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    mean: float
    mean_interval: tuple[float, float]
    level: float
    matched: bool
    statement: str


def match_at_equal_compute(
    frontier: FrontierLaw,
    compute: ArrayLike,
    measured: ArrayLike,
    *,
    names: tuple[str, str] = ("these runs", "the frontier"),
    unit: str = "",
    level: float = 0.9,
) -> Match:
    """Whether runs of another family lie on `frontier` at their own compute.

    Args:
        frontier: law of the reference family. compute, measured: the other family's runs, (m,), in the same units.
        names: of the other family and of the reference. unit: of the loss, for the statement.

    Raises:
        LawError: no run, or values not positive and finite.
    """
    x, y = positive_columns(compute=compute, measured=measured)
    if not x.size:
        raise LawError("a match needs at least one run")
    # One draw of `sample` shares its quantile between all compute values: errors of the law move together.
    difference = y - frontier.sample(x)
    ends = [0.5 - level / 2, 0.5 + level / 2]
    lo, hi = np.quantile(difference, ends, axis=0)
    mean_lo, mean_hi = (float(v) for v in np.quantile(difference.mean(axis=1), ends))
    expected = frontier.predict(x)
    mean = float((y - expected).mean())
    matched = mean_lo <= 0.0 <= mean_hi
    verdict = "match" if matched else ("beat" if mean < 0 else "fall short of")
    statement = (
        f"At equal compute {names[0]} {verdict} {names[1]}: {mean:+.2f}{unit} on average over {x.size} runs "
        f"({level:.0%} interval {mean_lo:+.2f} to {mean_hi:+.2f}{unit})"
    )
    return Match(
        tuple(x.tolist()), tuple(y.tolist()), tuple(expected.tolist()), tuple((y - expected).tolist()),
        tuple(zip(lo.tolist(), hi.tolist(), strict=True)), mean, (mean_lo, mean_hi), level, matched, statement,
    )  # fmt: skip
