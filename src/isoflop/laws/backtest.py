"""Backtests of a law with rolling origins, and what they add to an interval.

A bootstrap covers the noise and the parameters, not the error of the form. The errors of a law that is fitted to the
lower part of the ladder and predicts the upper part do. They become a *drift*: a standard deviation of log loss per
unit of log compute beyond the data, estimated with a wide prior because a ladder gives few such errors.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.laws.columns import JsonRecord
from isoflop.laws.solve import Array

DRIFTS = np.geomspace(0.003, 0.1, 15)
"""What is believed before any backtest: the form errs by 0.3 % to 10 % of loss per e-fold of compute, each scale of
these as likely as the next, so that a ladder of clean backtests earns a narrow interval and a poor one a wide one."""
LASTING = 2.0
"""How much larger a lasting bias is believed to be than the errors that change from origin to origin."""
PRIOR_COUNT = 3.0
"""Degrees of freedom of Student's quantiles before any backtest."""
TRUSTED = 0.7
"""Below this coverage of backtests a warning is due."""


@dataclass(frozen=True)
class Backtests(JsonRecord):
    """Errors of predictions of held-back rungs, each from the rungs below it.

    Attributes:
        distances: log(C_predicted / C_largest_fitted) of each prediction.
        errors: log(measured / predicted) of each prediction.
        drift: standard deviation of log loss per unit of distance that is left after `bias`.
        bias: mean error per unit of distance, shrunk towards 0: a law that was always too high by 10 % at this
            distance is corrected by most of that.
        freedom: degrees of freedom behind `drift`, for Student quantiles.
        coverage: share of the errors inside the `level` interval that the tool would have given at that time,
            None without backtests.
        level: the level of those intervals.
    """

    distances: tuple[float, ...]
    errors: tuple[float, ...]
    drift: float
    freedom: float
    coverage: float | None
    level: float
    bias: float = 0.0

    def correction(self, beyond: ArrayLike) -> Array:
        """What to add to a log prediction `beyond` (log of compute over the largest fitted, 0 inside).

        The bias is believed as far as it was seen, and half as far again.
        """
        reach = 1.5 * max(self.distances, default=0.0)
        return self.bias * np.minimum(np.asarray(beyond, dtype=np.float64), reach)


def summarise(
    distances: ArrayLike, errors: ArrayLike, spreads: ArrayLike, origins: ArrayLike, level: float
) -> Backtests:
    """Backtests from their raw errors.

    `spreads` is the standard deviation that noise and parameters alone explain, `origins` the rung each prediction
    was made from: errors from one origin are one mistake seen several times, so they share one vote.
    """
    h, e, s, o = (np.asarray(v, dtype=np.float64) for v in (distances, errors, spreads, origins))
    votes = np.array([1.0 / np.count_nonzero(o == v) for v in o])
    bias, drift = _posterior(h, e, s, votes)
    freedom = PRIOR_COUNT + float(votes.sum())
    coverage = None
    if e.size:
        # Each origin is judged with what the others knew, as far as there are others.
        inside = []
        for origin in np.unique(o):
            here, rest = o == origin, o != origin
            middle, spread = _posterior(h[rest], e[rest], s[rest], votes[rest])
            half = student(freedom - 1.0, 0.5 + level / 2) * np.sqrt(s**2 + (spread * h) ** 2)
            inside += (np.abs(e - middle * h) <= half)[here].tolist()
        coverage = float(np.mean(inside))
    return Backtests(tuple(h.tolist()), tuple(e.tolist()), drift, freedom, coverage, level, bias)


def _posterior(h: Array, e: Array, s: Array, votes: Array) -> tuple[float, float]:
    """Bias and standard deviation, per unit of distance, of the error of one more prediction.

    For each scale τ of `DRIFTS` an error at distance h is N(b·h, s² + (τ·h)²) with b ~ N(0, (`LASTING`·τ)²); b is
    integrated out, and the scales are weighted by how well they explain the errors.
    """
    tau = DRIFTS[:, None]
    weight = votes / (s**2 + (tau * h) ** 2)
    precision = 1.0 / (LASTING * DRIFTS) ** 2 + (weight * h**2).sum(1)
    mean = (weight * h * e).sum(1) / precision
    misfit = (weight * e**2).sum(1) - precision * mean**2
    evidence = -0.5 * (misfit + np.log(precision * (LASTING * DRIFTS) ** 2) - (votes * np.log(weight / votes)).sum(1))
    share = np.exp(evidence - evidence.max())
    share /= share.sum()
    bias = float(share @ mean)
    return bias, float(np.sqrt(share @ (DRIFTS**2 + 1.0 / precision + (mean - bias) ** 2)))


def doubt(coverage: float | None, level: float) -> str:
    """What a reader should know about backtests of which `coverage` fell inside their intervals; "" if nothing."""
    if coverage is None:
        return "too few points for a backtest: beyond the data the interval is a guess"
    if coverage < TRUSTED:
        return f"only {coverage:.0%} of the backtests fell inside their {level:.0%} intervals: trust less"
    return ""


def student(freedom: ArrayLike, probability: ArrayLike) -> Array:
    """Quantiles of Student's distribution."""
    from scipy.special import stdtrit  # 0.2 s to import: not before it is needed

    return np.asarray(stdtrit(np.asarray(freedom), np.asarray(probability)), dtype=np.float64)


@cache
def _stratified(freedom: float, points: int) -> Array:
    return student(freedom, (np.arange(points) + 0.5) / points)


def predictive(log_mean: Array, deviation: ArrayLike, freedom: ArrayLike, points: int = 21) -> Array:
    """Draws (points·R, ...) of log loss: each replicate's log prediction (R, ...) plus Student errors of `deviation`
    with `freedom`, both of the shape of a prediction or one for all.

    The errors are stratified quantiles, not random numbers: the same law always gives the same interval.
    """
    shape = log_mean.shape[1:]
    if isinstance(freedom, float | int):
        q = _stratified(freedom, points).reshape(-1, *[1] * len(shape))
    else:
        levels = ((np.arange(points) + 0.5) / points).reshape(-1, *[1] * len(shape))
        q = student(np.broadcast_to(np.asarray(freedom, dtype=np.float64), shape), levels)
    spread = q * np.broadcast_to(deviation, shape)
    return np.concatenate([log_mean + s for s in spread])


def rungs(compute: ArrayLike, gap: float = 1.15) -> NDArray[np.intp]:
    """The rung (0, 1, … in ascending compute) of each run: a new rung starts where sorted compute jumps by `gap`."""
    log_compute = np.log(np.asarray(compute, dtype=np.float64))
    order = np.argsort(log_compute, kind="stable")
    new = np.concatenate([[0], np.diff(log_compute[order]) > np.log(gap)]).astype(np.intp)
    label = np.empty(order.size, dtype=np.intp)
    label[order] = np.cumsum(new)
    return label
