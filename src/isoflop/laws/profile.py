"""Confidence intervals of one parameter by profiling: all values at which the best fit of the other parameters is not
significantly worse. Unlike bootstrap percentiles they are valid for small tables and for parameters near a bound.
"""

import numpy as np

from isoflop.laws.backtest import student
from isoflop.laws.solve import Array, Model, Prior, minimise


def profile_interval(
    model: Model,
    theta: Array,
    target: Array,
    parameter: int,
    *,
    delta: float,
    lower: Array,
    upper: Array,
    fixed: tuple[int, ...] = (),
    level: float = 0.95,
    points: int = 25,
    weights: Array | None = None,
    spread: float = 0.0,
    prior: Prior | None = None,
) -> tuple[float, float]:
    """(lo, hi) of `theta[parameter]`; a bound of the box where the data set none.

    `theta` is the minimum of the objective that is profiled: `delta` (Huber's bend), `weights` and `prior` are those of
    the fit, so the interval is that of the estimate and contains it. The objective's rise is compared with Student's
    quantile squared (an F test) with m - p degrees of freedom, times E ψ² / E ψ', by which Huber's loss rises less than
    a square (Schrader and Hettmansperger 1980). Without a degree of freedom nothing is known: the whole box. Each end
    is refined three times. Where a target stands for several rows, `weights` counts them and `spread` is the sum of
    their squares about the targets.
    """
    weights = np.ones_like(target) if weights is None else weights
    freedom = int(weights.sum()) - (theta.size - len(fixed))
    if freedom < 1:
        return float(lower[parameter]), float(upper[parameter])
    best = minimise(
        model, theta[None], target, delta=delta, lower=lower, upper=upper, weights=weights, prior=prior, fixed=fixed,
        iterations=1000,
    )  # fmt: skip
    centre, floor = float(theta[parameter]), float(best.objective[0])
    residual = np.abs(model(best.theta)[0][0] - target)
    bent = float(weights @ np.minimum(residual, delta) ** 2) + spread
    straight = float(weights @ (residual <= delta)) / float(weights.sum())
    threshold = 0.5 * bent / freedom / max(straight, 0.5) * float(student(freedom, 0.5 + level / 2)) ** 2
    scale = np.maximum(np.abs(centre), 0.02) * np.concatenate([[0.0], np.geomspace(1e-3, 1e2, points)])
    bounds = float(lower[parameter]), float(upper[parameter])
    grids = [np.clip(centre - scale, bounds[0], centre), np.clip(centre + scale, centre, bounds[1])]
    ends = [centre, centre]
    for _ in range(3):  # both ends at once
        values = np.concatenate(grids)
        starts = np.repeat(best.theta, values.size, axis=0)
        starts[:, parameter] = values
        objective = minimise(
            model, starts, target, delta=delta, lower=lower, upper=upper, weights=weights, prior=prior,
            fixed=(*fixed, parameter), iterations=100,
        ).objective  # fmt: skip
        for k, value in enumerate(np.split(objective, [grids[0].size])):
            worse = np.flatnonzero(value - floor > threshold)
            first = max(int(worse[0]), 1) if worse.size else -1
            inside, outside = float(grids[k][first - 1 if worse.size else -1]), float(grids[k][first])
            ends[k], grids[k] = 0.5 * (inside + outside), np.linspace(inside, outside, 9)
    return ends[0], ends[1]
