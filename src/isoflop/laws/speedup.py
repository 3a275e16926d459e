"""How many times less compute one family needs than another for equal loss, with an interval."""

from dataclasses import dataclass

import numpy as np

from isoflop.errors import LawError
from isoflop.laws.columns import JsonRecord
from isoflop.laws.frontier import FrontierLaw, fit_frontier
from isoflop.laws.size_data import SizeDataLaw
from isoflop.laws.solve import Array

LOSSES = 9
"""Equal losses that are compared in the range that both families reached."""
PAIRS = 5
"""Replicates of one family are paired with those of the other in so many shuffled orders."""
POINTS = 24
"""A curve of more points is averaged before its frontier is fitted: four parameters need no more."""


@dataclass(frozen=True)
class Speedup(JsonRecord):
    """Compute of `slower` divided by that of `faster` for equal loss, as a factor with its interval.

    Attributes:
        faster, slower: the families A and B as they were asked about; a factor below 1 says that A needs more.
        factor, interval: at `level`, from joint draws of both laws.
        compute: the budget of B at which its loss was taken; None over the common range, where the factor is the
            geometric mean.
        losses: the range of equal losses, highest first. factors: at these two ends.
    """

    faster: str
    slower: str
    factor: float
    interval: tuple[float, float]
    level: float
    compute: float | None
    losses: tuple[float, float]
    factors: tuple[float, float]

    @property
    def statement(self) -> str:
        """The same in words."""
        (lo, hi), (first, last) = self.interval, self.factors
        said = f"{self.faster} needs {self.factor:.3g} times less compute than {self.slower} for equal loss"
        if self.factor < 1:
            said = f"{self.faster} needs {1 / self.factor:.3g} times more compute than {self.slower} for equal loss"
        where = f"at the loss of {self.slower} with {self.compute:.3g}" if self.compute is not None else (
            f"over the losses both reached; {first:.3g} at {self.losses[0]:.4g}, {last:.3g} at {self.losses[1]:.4g}"
        )  # fmt: skip
        known = " (the interval includes 1: neither is shown to need less)" if lo <= 1 <= hi else ""
        return (
            f"{said}: a factor of **{self.factor:.3g}** ({self.level:.0%} interval {lo:.3g} to {hi:.3g}) {where}{known}"
        )


def speedup(
    faster: tuple[str, SizeDataLaw | FrontierLaw],
    slower: tuple[str, SizeDataLaw | FrontierLaw],
    compute: float | None = None,
    *,
    level: float = 0.9,
) -> Speedup:
    """How many times less compute the first (name, law) needs than the second for equal loss.

    Each draw takes a replicate of each law, and beyond its data an error of its form as large as its backtests showed.

    Args:
        compute: equal loss is what the second reaches with this budget; over the range that both reached if None.

    Raises:
        LawError: the ranges of loss do not overlap and no budget is given.
    """
    (a, b), (first, second) = (faster[1], slower[1]), (faster[0], slower[0])
    lowest = min(a.compute_range[0], b.compute_range[0])
    highest = max(a.compute_range[1], b.compute_range[1], compute or 0.0)
    grid = np.geomspace(lowest / 100, highest * 1000, 240)
    t = np.log(grid)
    rng = np.random.default_rng(0)
    point = [_falling(np.log(law.frontier(grid))) for law in (a, b)]
    if compute is None:
        ends = [np.interp(np.log(law.compute_range), t, z) for law, z in zip((a, b), point, strict=True)]
        high, low = min(e[0] for e in ends), max(e[1] for e in ends)
        if high <= low:
            raise LawError(f"{first} and {second} reached no loss in common: give a --budget to compare them beyond")
        levels = np.linspace(high, low, LOSSES)
    else:
        levels = np.interp([np.log(compute)], t, point[1])
    factors = _at(t, point[1], levels) - _at(t, point[0], levels)
    draws = []
    for _ in range(PAIRS):
        left, right = (_draws(law, grid, rng) for law in (a, b))
        for one, other in zip(left, right, strict=False):
            z, w = _falling(one), _falling(other)
            here = levels if compute is None else np.interp([np.log(compute)], t, w)
            draws.append(float(np.mean(_at(t, w, here) - _at(t, z, here))))
    lo, hi = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    middle = float(factors.mean())
    return Speedup(
        first, second, float(np.exp(middle)), (float(np.exp(min(lo, middle))), float(np.exp(max(hi, middle)))), level,
        compute, (float(np.exp(levels[0])), float(np.exp(levels[-1]))),
        (float(np.exp(factors[0])), float(np.exp(factors[-1]))),
    )  # fmt: skip


def frontier_of_curve(x: Array, y: Array) -> FrontierLaw:
    """The law of a curve of compute with replicates; many points are averaged over equal steps of log x."""
    order = np.argsort(x, kind="stable")
    t, z = np.log(x[order]), np.log(y[order])
    if t.size > POINTS:
        cell = np.minimum(((t - t[0]) / max(np.ptp(t), 1e-9) * POINTS).astype(int), POINTS - 1)
        count = np.bincount(cell)
        t, z = (np.bincount(cell, v)[count > 0] / count[count > 0] for v in (t, z))
    return fit_frontier(np.exp(t), np.exp(z))


def _draws(law: SizeDataLaw | FrontierLaw, grid: Array, rng: np.random.Generator) -> Array:
    """Log losses (R, m) of the best run at each budget, in a random order."""
    beyond = np.maximum(np.log(grid / law.compute_range[1]), 0.0)
    z = np.log(law.frontier_replicates(grid))
    z = z[rng.permutation(len(z))]
    return np.asarray(z + law.backtests.drift * rng.standard_t(law.backtests.freedom, (len(z), 1)) * beyond)


def _falling(z: Array) -> Array:
    """A log loss that never rises with compute, so that it can be inverted."""
    return np.asarray(np.minimum.accumulate(z) - 1e-12 * np.arange(z.size))


def _at(t: Array, z: Array, levels: Array) -> Array:
    """Log compute at which a falling log loss reaches each level; the ends of the grid where it does not."""
    return np.asarray(np.interp(-levels, -z, t))
