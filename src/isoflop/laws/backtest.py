"""How wrong a law has been when it was asked about the future: rolling-origin errors and what they add to an interval.

A bootstrap knows the noise and the parameters; it does not know that the form is wrong. Errors of the same law fitted
to the lower part of the ladder and asked about the upper part do. They become a *drift*: a standard deviation of log
loss per unit of log compute beyond the data, shrunk towards a weak prior because a ladder gives few such errors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.laws.records import Record
from isoflop.laws.solve import Array

PRIOR_DRIFT = 0.03
"""What is believed before any backtest: 3 % of loss per e-fold of compute (about 7 % for a decade)."""
PRIOR_COUNT = 3.0
"""How many backtest errors that belief is worth."""


@dataclass(frozen=True)
class Backtests(Record):
    """Errors of predictions of held-back rungs, each from the rungs below it.

    Attributes:
        distances: log(C_predicted / C_largest_fitted) of each prediction.
        errors: log(measured / predicted) of each prediction.
        drift: standard deviation of log loss per unit of distance, after shrinkage; 0 within the data.
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


def summarise(
    distances: ArrayLike, errors: ArrayLike, spreads: ArrayLike, origins: ArrayLike, level: float
) -> Backtests:
    """Backtests from their raw errors.

    `spreads` is the standard deviation that noise and parameters alone explain, `origins` the rung each prediction
    was made from: errors from one origin are one mistake seen several times, so they share one vote.
    """
    h, e, s, o = (np.asarray(v, dtype=np.float64) for v in (distances, errors, spreads, origins))
    votes = np.array([1.0 / np.count_nonzero(o == v) for v in o])
    # Noise and parameter error are in the interval already: only what they leave unexplained is drift. Half of it
    # is taken off, not all: the spread of a small fit is itself uncertain, and too wide is the better mistake.
    excess = np.maximum(e**2 - 0.5 * s**2, 0.0) / np.maximum(h, 0.3) ** 2
    count = float(votes.sum())
    drift = float(np.sqrt((PRIOR_COUNT * PRIOR_DRIFT**2 + (votes * excess).sum()) / (PRIOR_COUNT + count)))
    freedom = PRIOR_COUNT + count
    coverage = None
    if e.size:
        others = (PRIOR_COUNT * PRIOR_DRIFT**2 + (votes * excess).sum() - votes * excess) / (freedom - votes)
        half = student(freedom - 1.0, 0.5 + level / 2) * np.sqrt(s**2 + others * h**2)
        coverage = float(np.mean(np.abs(e) <= half))
    return Backtests(tuple(h.tolist()), tuple(e.tolist()), drift, freedom, coverage, level)


def student(freedom: float, probability: ArrayLike) -> Array:
    """Quantiles of Student's distribution."""
    from scipy.special import stdtrit  # 0.2 s to import: not before it is needed

    return np.asarray(stdtrit(freedom, np.asarray(probability)), dtype=np.float64)


def predictive(log_mean: Array, deviation: ArrayLike, freedom: float, points: int = 21) -> Array:
    """Draws (points·R, ...) of log loss: each replicate's log prediction (R, ...) plus Student errors of `deviation`.

    The errors are stratified quantiles, not random numbers: the same law always gives the same interval.
    """
    q = student(freedom, (np.arange(points) + 0.5) / points)
    spread = np.multiply.outer(q, np.broadcast_to(deviation, log_mean.shape[1:]))
    return np.concatenate([log_mean + s for s in spread])


def rungs(compute: ArrayLike, gap: float = 1.15) -> NDArray[np.intp]:
    """The rung (0, 1, … in ascending compute) of each run: a new rung starts where sorted compute jumps by `gap`."""
    log_compute = np.log(np.asarray(compute, dtype=np.float64))
    order = np.argsort(log_compute, kind="stable")
    new = np.concatenate([[0], np.diff(log_compute[order]) > np.log(gap)]).astype(np.intp)
    label = np.empty(order.size, dtype=np.intp)
    label[order] = np.cumsum(new)
    return label
