"""Confidence intervals of one parameter by profiling: all values at which the best fit of the other parameters is not
significantly worse. Unlike bootstrap percentiles they are valid for small tables and for parameters near a bound.
"""

import numpy as np

from isoflop.laws.backtest import student
from isoflop.laws.solve import Array, Model, minimise

BEND = 3.0
"""Huber's loss bends at this many standard deviations here: outliers are held off, normal noise is left quadratic, so
that the F test holds."""


def profile_interval(
    model: Model,
    theta: Array,
    target: Array,
    parameter: int,
    *,
    noise: float,
    lower: Array,
    upper: Array,
    fixed: tuple[int, ...] = (),
    level: float = 0.95,
    points: int = 25,
    weights: Array | None = None,
    spread: float = 0.0,
) -> tuple[float, float]:
    """(lo, hi) of `theta[parameter]`; a bound of the box where the data set none.

    The objective's rise is compared with Student's quantile squared (an F test), the variance estimated from the
    residuals at the best fit with m - p degrees of freedom; `noise` (standard deviation of log y) only sets where
    Huber's loss bends. Each end is refined three times. Where a target stands for several rows, `weights` counts them
    and `spread` is the sum of their squares about the targets.
    """
    first = model(theta[None])[0][0] - target
    # Without an outlier nothing is bent: in a small table the noise is often underestimated.
    delta = max(BEND * noise, float(np.abs(first).max()) * 1.5 if np.abs(first).max() < 2 * BEND * noise else 0.0)
    weights = np.ones_like(target) if weights is None else weights
    best = minimise(
        model, theta[None], target, delta=delta, lower=lower, upper=upper, weights=weights, fixed=fixed, iterations=1000
    )
    centre, floor = float(best.theta[0, parameter]), float(best.objective[0])
    residual = model(best.theta)[0][0] - target
    freedom = max(int(weights.sum()) - (theta.size - len(fixed)), 1)
    variance = (float(weights @ np.clip(residual, -delta, delta) ** 2) + spread) / freedom
    threshold = 0.5 * variance * float(student(freedom, 0.5 + level / 2)) ** 2
    scale = np.maximum(np.abs(centre), 0.02) * np.concatenate([[0.0], np.geomspace(1e-3, 1e2, points)])
    ends = []
    for sign, bound in ((-1.0, float(lower[parameter])), (1.0, float(upper[parameter]))):
        grid = np.clip(centre + sign * scale, min(centre, bound), max(centre, bound))
        inside, outside = centre, bound
        for _ in range(3):
            starts = np.repeat(best.theta, grid.size, axis=0)
            starts[:, parameter] = grid
            value = minimise(
                model, starts, target, delta=delta, lower=lower, upper=upper, weights=weights,
                fixed=(*fixed, parameter), iterations=100,
            ).objective  # fmt: skip
            worse = np.flatnonzero(value - floor > threshold)
            if worse.size == 0:
                inside = outside = float(grid[-1])
                break
            first = max(int(worse[0]), 1)
            inside, outside = float(grid[first - 1]), float(grid[first])
            grid = np.linspace(inside, outside, 9)
        ends.append(0.5 * (inside + outside))
    given = float(theta[parameter])  # which a sharper bend may have led elsewhere: an interval contains its estimate
    return min(float(ends[0]), given), max(float(ends[1]), given)
