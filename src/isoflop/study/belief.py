"""The belief of the planner about runs that were not made: a linear-Gaussian model per family, fitted in milliseconds.

log loss = log(E + A·n^-α + B·d^-β) + bowl(log lr − log lr*(n, d)) + walk(budget) + noise, with log lr* = k + p·log n
+ q·log d. The walk models the error of the form: a random walk over log budget, from the lowest rung to the target, so
that runs far below the target carry less information about it. Parameters are fitted by Gauss-Newton with weak priors;
their covariance is that of the linearised problem. The answer itself comes from `isoflop.laws`, whose intervals are
calibrated; the belief only decides which runs to make next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRIFT = 0.04
"""Standard deviation of the walk: 4 % of loss per √(e-fold of budget)."""
SKEW = 0.3
"""Too high a rate costs more than too low a one: the bowl's curvature tends to 1 ± SKEW times the middle one."""
NOISE, NOISE_WORTH = 0.03, 4.0
"""Noise of a run (of log loss) before it is known, and how many runs that opinion is worth."""
SHARED = 9  # parameters before the steps of the walk: log E, log A, log B, log α, log β, k, p, q, log curvature
ITERATIONS = 60


@dataclass(frozen=True)
class Trial:
    """A run that could be or was made: FLOPs an image `n`, images `d`, learning rate, which copy of it (0, 1, …)."""

    family: str
    model: str
    n: float
    d: float
    budget: float
    rate: float
    copy: int = 0


@dataclass(frozen=True)
class Belief:
    """Mean and covariance of a family's parameters, and the noise of a run about them.

    `levels` are the budgets where the walk steps, the target last; `centre` the mean log n and log d that the
    parameters refer to; `runs` how many finished runs are behind it.
    """

    mean: Array
    covariance: Array
    noise: float
    levels: tuple[float, ...]
    centre: tuple[float, float]
    runs: int

    def predict(self, trials: Sequence[Trial]) -> tuple[Array, Array]:
        """Expected log loss (m,) of trials without their noise, and its gradient in the parameters (m, parameters)."""
        value, gradient = _model(self.mean, _columns(trials, self.levels, self.centre))
        # The bowl's mean is above its value at the mean rate: half its curvature times the variance of log lr*.
        return value + 0.5 * math.exp(self.mean[8]) * self._rate_variance(trials), gradient

    def best_rate(self, n: float, d: float) -> float:
        """The learning rate believed best for size n and d images."""
        k, p, q = self.mean[5:8]
        return math.exp(k + p * (math.log(n) - self.centre[0]) + q * (math.log(d) - self.centre[1]))

    def _rate_variance(self, trials: Sequence[Trial]) -> Array:
        x = np.array([[1.0, math.log(t.n) - self.centre[0], math.log(t.d) - self.centre[1]] for t in trials])
        return np.asarray(np.einsum("mi,ij,mj->m", x, self.covariance[5:8, 5:8], x))


def fit_belief(
    trials: Sequence[Trial],
    losses: Sequence[float],
    levels: tuple[float, ...],
    usual_rate: tuple[float, float, float],
) -> Belief | None:
    """The belief that finished trials of one family and their losses give; None without a finite loss.

    Args:
        trials, losses: the runs; a loss that is not finite (a run that diverged) is left out.
        levels: every budget that a trial may have, ascending, the target last.
        usual_rate: learning rate to expect at the geometric mean size, the exponent of n to expect in it, and how far
            that may be off.
    """
    known = [row for row in zip(trials, losses, strict=True) if math.isfinite(row[1])]
    if not known:
        return None
    done = [trial for trial, _ in known]
    y = np.log([loss for _, loss in known])
    centre = float(np.mean([math.log(t.n) for t in done])), float(np.mean([math.log(t.d) for t in done]))
    columns = _columns(done, levels, centre)
    mean, width = _opinions(float(y.min()), levels, usual_rate)
    theta, noise, weight = mean.copy(), NOISE, np.ones(y.size)
    for _ in range(6):
        theta = _minimise(theta, columns, y, weight / noise**2, mean, width)
        residual = y - _model(theta, columns)[0]
        weight = 1.0 / np.maximum(1.0, np.abs(residual) / (1.345 * noise))
        # Each run frees or binds parameters by less than one: the opinions hold the rest.
        information = _information(theta, columns, weight / noise**2)
        spent = float(np.trace(np.linalg.solve(information + np.diag(width**-2), information)))
        before, noise = (
            noise,
            math.sqrt(
                (NOISE_WORTH * NOISE**2 + float((weight * residual**2).sum()))
                / (NOISE_WORTH + max(y.size - spent, 0.0))
            ),
        )
        if abs(noise - before) < 0.02 * noise:
            break
    information = _information(theta, columns, weight / noise**2)
    covariance: Array = np.linalg.inv(information + np.diag(width**-2)).astype(np.float64)
    return Belief(theta, covariance, noise, levels, centre, len(done))


def _opinions(lowest: float, levels: tuple[float, ...], usual_rate: tuple[float, float, float]) -> tuple[Array, Array]:
    """Mean and standard deviation of every parameter before anything but the scale of the loss is known."""
    steps = DRIFT * np.sqrt(np.diff(np.log(levels)))
    shared = [
        (lowest + math.log(0.6), 0.7),  # E
        (lowest + math.log(0.25), 1.2),  # A, at the centre
        (lowest + math.log(0.25), 1.2),  # B, at the centre
        (math.log(0.4), 0.5),  # α
        (math.log(0.4), 0.5),  # β
        (math.log(usual_rate[0]), 1.0),
        (usual_rate[1], usual_rate[2]),
        (-0.1, 0.1),  # longer runs want lower rates
        (math.log(0.06), 0.7),  # a factor of 2 costs about 1.5 %
    ]
    mean = np.array([m for m, _ in shared] + [0.0] * len(steps))
    return mean, np.concatenate([[s for _, s in shared], steps])


def _columns(trials: Sequence[Trial], levels: tuple[float, ...], centre: tuple[float, float]) -> tuple[Array, ...]:
    """Centred log n and log d, log rate, and which steps of the walk each budget has behind it (m, levels - 1)."""
    x = np.array([math.log(t.n) for t in trials]) - centre[0]
    y = np.array([math.log(t.d) for t in trials]) - centre[1]
    rate = np.array([math.log(t.rate) for t in trials])
    walked = np.array([[float(t.budget >= level * 0.99) for level in levels[1:]] for t in trials])
    return x, y, rate, walked


def _model(theta: Array, columns: tuple[Array, ...]) -> tuple[Array, Array]:
    x, y, rate, walked = columns
    e, a, b, alpha, beta = np.exp(theta[:5])
    size, data = a * np.exp(-alpha * x), b * np.exp(-beta * y)
    total = e + size + data
    u = rate - (theta[5] + theta[6] * x + theta[7] * y)
    curvature = math.exp(theta[8])
    root = np.sqrt(1.0 + u * u)
    bowl = 0.5 * curvature * u * u * (1.0 + SKEW * u / root)
    slope = curvature * (u * (1.0 + SKEW * u / root) + 0.5 * SKEW * u * u / root**3)
    gradient = np.concatenate(
        [
            np.stack(
                [
                    e / total, size / total, data / total, -alpha * x * size / total, -beta * y * data / total,
                    -slope, -slope * x, -slope * y, bowl,
                ],
                axis=1,
            ),
            walked,
        ],
        axis=1,
    )  # fmt: skip
    return np.log(total) + bowl + walked @ theta[SHARED:], gradient


def _information(theta: Array, columns: tuple[Array, ...], precision: Array) -> Array:
    gradient = _model(theta, columns)[1]
    return np.asarray(gradient.T @ (precision[:, None] * gradient))


def _minimise(theta: Array, columns: tuple[Array, ...], y: Array, precision: Array, mean: Array, width: Array) -> Array:
    """The parameters of least weighted squares plus opinions, by Levenberg-Marquardt from `theta`."""

    def objective(at: Array) -> float:
        residual = y - _model(at, columns)[0]
        return float((precision * residual**2).sum() + (((at - mean) / width) ** 2).sum())

    damping, best = 1e-3, objective(theta)
    for _ in range(ITERATIONS):
        value, gradient = _model(theta, columns)
        pull = gradient.T @ (precision * (y - value)) + (mean - theta) / width**2
        information = gradient.T @ (precision[:, None] * gradient) + np.diag(width**-2)
        step = np.linalg.solve(information + damping * np.diag(np.diag(information)), pull)
        candidate = theta + np.clip(step, -1.0, 1.0)
        reached = objective(candidate)
        if reached < best:
            gain, theta, best, damping = best - reached, candidate, reached, damping / 5
            if gain < 1e-6:
                break
        else:
            damping *= 5
            if damping > 1e8:
                break
    return theta
