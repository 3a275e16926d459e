"""The belief of the planner about runs that were not made: a linear-Gaussian model per family, fitted in milliseconds.

log loss = log(E + A·n^-α + B·d^-β) + bowl(log lr − log lr*(n, d)) + walk(budget) + noise, with log lr* = k + p·log n
+ q·log d. Where a family searches its level of regularisation, ½·κ·(level − level*)² comes on top, with level* = r +
s·log epochs. The walk models the error of the form: a random walk over log budget, from the lowest rung to the target,
so that runs far below the target carry less information about it. Parameters are fitted by Gauss-Newton with weak
priors; their covariance is that of the linearised problem. The answer itself comes from `isoflop.laws`, whose intervals
are calibrated; the belief only decides which runs to make next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isoflop.config.study import RECIPES
from isoflop.laws.curve import forecast
from isoflop.laws.labels import NOISE, NOISE_WORTH
from isoflop.laws.size_data_fit import effective_images

Array = NDArray[np.float64]

DRIFT = 0.04
"""Standard deviation of the walk: 4 % of loss per √(e-fold of budget)."""
SKEW = 0.3
"""Too high a rate costs more than too low a one: the bowl's curvature tends to 1 ± SKEW times the middle one."""
SHARED = 9  # parameters before the steps of the walk: log E, log A, log B, log α, log β, k, p, q, log curvature
ITERATIONS = 60
EXPONENT = 0.4
"""Of size and of data, before anything is known."""
REPEATS = 15.4
"""R* of arXiv 2305.16264: repeats are worth at most so many times the different images."""
REPEATS_TRIED = tuple(REPEATS * 2.0**power for power in (-3, -2, -1, 0, 1, 2))
"""Where runs on a part of the images tell."""
REPEATS_DOUBT = 0.7  # of log R*
EPOCHS_OF_A_LEVEL = 10.0
"""Each further level of regularisation is usually best for so many times the epochs. After a ResNet's 90 epochs of
ImageNet-1k with random crops, DeiT's 300 with CutMix and erasing, and 80 epochs of 1,000 images of CIFAR-10, for which
level 1.2 is the best of a parabola through three runs."""
LEVEL_BOUNDS = -0.5, 2.5
"""Of the best level: beyond, what a level costs does not grow further."""
FIRST_LEVEL = 5.0  # epochs at which the first level is usually best
LEVEL_DOUBT, LEVEL_SLOPE_DOUBT = 0.5, 0.15  # of level*, in levels; of its slope in log epochs
SIZE_DOUBT = 1.5
"""How far the best size may be from the usual one at the mean budget: a factor of e^±1.5."""


def usual_size(budget: float) -> float:
    """FLOPs an image of the best size at `budget` training FLOPs, roughly: 8·√budget, fitted to small ViTs and
    PoolFormers on generated fractals at 32 px, budgets 1e10 to 3e12."""
    return 8.0 * math.sqrt(budget)


LEVELS = {name: float(level) for level, name in enumerate(RECIPES)}


def level_of(recipe: str) -> float:
    """The place of a recipe among the levels of regularisation; 0 where none is chosen."""
    return LEVELS.get(recipe, 0.0)


def usual_level(epochs: float) -> float:
    """The level of regularisation that is usually best for so many epochs, any real number."""
    return math.log(max(epochs, 1e-3) / FIRST_LEVEL) / math.log(EPOCHS_OF_A_LEVEL)


@dataclass(frozen=True)
class Trial:
    """A run that could be or was made: FLOPs an image `n`, images `d`, learning rate, level of regularisation where
    that is chosen, which copy of it (0, 1, …), the number of different images where they are not all that there are."""

    family: str
    model: str
    n: float
    d: float
    budget: float
    rate: float
    recipe: str = ""
    copy: int = 0
    unique_images: int | None = None


@dataclass(frozen=True)
class Belief:
    """Mean and covariance of a family's parameters, and the noise of a run about them.

    `levels` are the budgets where the walk steps, the target last; `centre` the mean log n and log d that the
    parameters refer to; `runs` how many finished runs are behind it; `unique_images` how many images there are. Where
    levels of regularisation are searched, the last three parameters are theirs: r and s of level*, log κ. `repeats` is
    R* of these images, `REPEATS` where no runs on a part of them tell.
    """

    mean: Array
    covariance: Array
    noise: float
    levels: tuple[float, ...]
    centre: tuple[float, float]
    runs: int
    unique_images: float = math.inf
    repeats: float = REPEATS

    def predict(self, trials: Sequence[Trial]) -> tuple[Array, Array]:
        """Expected log loss (m,) of trials without their noise, and its gradient in the parameters (m, parameters)."""
        columns = _columns(trials, self.levels, self.centre, self.unique_images, self.repeats)
        value, gradient = _model(self.mean, columns)
        n, d, *_, regularised = columns
        # The bowl's mean is above its value at the mean rate: half its curvature times the variance of log lr*.
        value = value + 0.5 * math.exp(self.mean[8]) * _variance(self.covariance[5:8, 5:8], n, d)
        if self.searches_levels:
            value = value + 0.5 * math.exp(self.mean[-1]) * _variance(self.covariance[-3:-1, -3:-1], regularised[:, 1])
        return value, gradient

    @property
    def searches_levels(self) -> bool:
        """Whether the level of regularisation is a parameter."""
        return self.mean.size > SHARED + len(self.levels) - 1

    def best_rate(self, n: float, d: float) -> float:
        """The learning rate believed best for size n and d images."""
        k, p, q = self.mean[5:8]
        seen = float(effective_images(d, self.unique_images, self.repeats))
        return math.exp(k + p * (math.log(n) - self.centre[0]) + q * (math.log(seen) - self.centre[1]))

    def best_level(self, d: float) -> float:
        """The level of regularisation believed best for d images, any real number; 0 where none is chosen."""
        if not self.searches_levels:
            return 0.0
        return float(self.mean[-3] + self.mean[-2] * _log_epochs(d, self.unique_images))


def _variance(covariance: Array, *columns: Array) -> Array:
    """Of a constant and the coefficients of `columns` (m,), whose covariance is given, at each row (m,)."""
    x = np.stack([np.ones(columns[0].size), *columns], axis=1)
    return np.asarray(np.einsum("mi,ij,mj->m", x, covariance, x))


def fit_belief(
    trials: Sequence[Trial],
    losses: Sequence[float],
    levels: tuple[float, ...],
    usual_rate: tuple[float, float, float],
    unique_images: float = math.inf,
) -> Belief | None:
    """The belief that finished trials of one family and their losses give; None without a finite loss.

    Args:
        trials, losses: the runs; a loss that is not finite (a run that diverged) is left out.
        levels: every budget that a trial may have, ascending, the target last.
        usual_rate: learning rate to expect at the geometric mean size, the exponent of n to expect in it, and how far
            that may be off.
        unique_images: how many there are; those seen again count less and less.
    """
    fits = []
    parts = {trial.unique_images for trial in trials} - {None}
    for repeats in REPEATS_TRIED if parts and math.isfinite(unique_images) else (REPEATS,):
        if (found := _fit(trials, losses, levels, usual_rate, unique_images, repeats)) is None:
            return None
        fits.append((found[1] + (math.log(repeats / REPEATS) / REPEATS_DOUBT) ** 2, repeats, found[0]))
    return min(fits, key=lambda fit: fit[:2])[2]


def _fit(
    trials: Sequence[Trial],
    losses: Sequence[float],
    levels: tuple[float, ...],
    usual_rate: tuple[float, float, float],
    unique_images: float,
    repeats: float,
) -> tuple[Belief, float] | None:
    """The belief where repeats are worth `repeats` times the images, and its misfit: squared residuals in units of the
    usual noise, with those of the opinions."""
    known = [row for row in zip(trials, losses, strict=True) if math.isfinite(row[1])]
    if not known:
        return None
    done = [trial for trial, _ in known]
    y = np.log([loss for _, loss in known])
    seen = np.log(effective_images([t.d for t in done], _different(done, unique_images), repeats))
    centre = float(np.mean([math.log(t.n) for t in done])), float(np.mean(seen))
    columns = _columns(done, levels, centre, unique_images, repeats)
    mean, precision = _opinions(float(y.min()), levels, usual_rate, centre, has_levels=any(t.recipe for t in done))
    theta, noise, weight = mean.copy(), NOISE, np.ones(y.size)
    for _ in range(6):
        theta = _minimise(theta, columns, y, weight / noise**2, mean, precision)
        residual = y - _model(theta, columns)[0]
        weight = 1.0 / np.maximum(1.0, np.abs(residual) / (1.345 * noise))
        # Each run frees or binds parameters by less than one: the opinions hold the rest.
        information = _information(theta, columns, weight / noise**2)
        spent = float(np.trace(np.linalg.solve(information + precision, information)))
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
    covariance: Array = np.linalg.inv(information + precision).astype(np.float64)
    belief = Belief(theta, covariance, noise, levels, centre, len(done), unique_images, repeats)
    residual = y - _model(theta, columns)[0]
    misfit = float((weight * residual**2).sum()) / NOISE**2 + float((theta - mean) @ precision @ (theta - mean))
    return _anchored(belief, done, y), misfit


def _anchored(belief: Belief, done: Sequence[Trial], y: Array) -> Belief:
    """`belief` with the last step of its walk, about which no run tells anything, such that the least loss at the
    target is what the forecaster of `isoflop.laws` makes of the best loss of each budget."""
    whole = [(trial.budget, v) for trial, v in zip(done, y, strict=True) if trial.unique_images is None]
    budgets = sorted({budget for budget, _ in whole})
    if len(budgets) < 2:
        return belief
    best = [min(v for at, v in whole if at == budget) for budget in budgets]
    target = belief.levels[-1]
    law = forecast(budgets, np.exp(best))
    value, deviation = law.moments(target)
    sizes = np.geomspace(min(t.n for t in done) / 2, 4 * max(t.n for t in done) * math.sqrt(target / budgets[-1]), 40)
    trials = [Trial("", "", n, target / n, target, belief.best_rate(n, target / n)) for n in sizes]
    if belief.searches_levels:
        trials = [replace(trial, recipe=name) for trial in trials for name in LEVELS]
    mean, covariance = belief.mean.copy(), belief.covariance.copy()
    last = SHARED + len(belief.levels) - 2
    mean[last] += float(value) - float(belief.predict(trials)[0].min())
    covariance[last, last] = max(float(deviation) ** 2, covariance[last, last])
    return replace(belief, mean=mean, covariance=covariance)


def _opinions(
    lowest: float,
    levels: tuple[float, ...],
    usual_rate: tuple[float, float, float],
    centre: tuple[float, float],
    *,
    has_levels: bool,
) -> tuple[Array, Array]:
    """Mean and precision of the parameters before anything but the scale of the loss is known."""
    steps = DRIFT * np.sqrt(np.diff(np.log(levels)))
    # Equal exponents give the least loss where the terms of size and data are equal: at the usual size.
    ahead = math.log(usual_size(math.exp(sum(centre)))) - centre[0]
    shared = [
        (lowest + math.log(0.6), 0.7),  # E
        (lowest + math.log(0.25) + EXPONENT * ahead, 1.2),  # A, at the centre
        (lowest + math.log(0.25) - EXPONENT * ahead, 1.2),  # B, at the centre
        (math.log(EXPONENT), 0.5),  # α
        (math.log(EXPONENT), 0.5),  # β
        (math.log(usual_rate[0]), 1.0),
        (usual_rate[1], usual_rate[2]),
        (-0.1, 0.1),  # longer runs want lower rates
        (math.log(0.06), 0.7),  # a factor of 2 costs about 1.5 %
    ]
    of_levels = [
        (usual_level(1.0), LEVEL_DOUBT),
        (1 / math.log(EPOCHS_OF_A_LEVEL), LEVEL_SLOPE_DOUBT),
        (math.log(0.15), 0.7),  # a level more or less costs about 7 %
    ] if has_levels else []  # fmt: skip
    mean = np.array([m for m, _ in shared] + [0.0] * len(steps) + [m for m, _ in of_levels])
    precision = np.diag(np.concatenate([[s for _, s in shared], steps, [s for _, s in of_levels]]) ** -2.0)
    ratio = np.zeros(mean.size)
    ratio[1], ratio[2] = 1.0, -1.0  # log A - log B
    precision += np.outer(ratio, ratio) / (2 * EXPONENT * SIZE_DOUBT) ** 2
    return mean, precision


def _columns(
    trials: Sequence[Trial],
    levels: tuple[float, ...],
    centre: tuple[float, float],
    unique_images: float,
    repeats: float,
) -> tuple[Array, ...]:
    """Centred log n and log d, log rate, which steps of the walk each budget has behind it (m, levels - 1), and the
    level of regularisation and log epochs (m, 2)."""
    x = np.array([math.log(t.n) for t in trials]) - centre[0]
    different = _different(trials, unique_images)
    y = np.log(effective_images([t.d for t in trials], different, repeats)) - centre[1]
    rate = np.array([math.log(t.rate) for t in trials])
    walked = np.array([[float(t.budget >= level * 0.99) for level in levels[1:]] for t in trials])
    regularised = np.array([(level_of(t.recipe), _log_epochs(t.d, u)) for t, u in zip(trials, different, strict=True)])
    return x, y, rate, walked, regularised


def _different(trials: Sequence[Trial], unique_images: float) -> Array:
    return np.array([unique_images if t.unique_images is None else float(t.unique_images) for t in trials])


def _log_epochs(d: float, unique_images: float) -> float:
    return math.log(d / unique_images) if math.isfinite(unique_images) else 0.0


def _model(theta: Array, columns: tuple[Array, ...]) -> tuple[Array, Array]:
    x, y, rate, walked, regularised = columns
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
    value = np.log(total) + bowl + walked @ theta[SHARED : SHARED + walked.shape[1]]
    if theta.size > gradient.shape[1]:
        intercept, rise, log_curvature = theta[-3:]
        level, epochs = regularised.T
        best, stiffness = intercept + rise * epochs, math.exp(log_curvature)
        inside = np.clip(best, *LEVEL_BOUNDS)
        off = level - inside
        cost, slope = 0.5 * stiffness * off**2, np.where(best == inside, -stiffness * off, 0.0)
        of_levels = np.stack([slope, slope * epochs, cost], axis=1)
        value, gradient = value + cost, np.concatenate([gradient, of_levels], axis=1)
    return value, gradient


def _information(theta: Array, columns: tuple[Array, ...], weights: Array) -> Array:
    gradient = _model(theta, columns)[1]
    return np.asarray(gradient.T @ (weights[:, None] * gradient))


def _minimise(
    theta: Array, columns: tuple[Array, ...], y: Array, weights: Array, mean: Array, precision: Array
) -> Array:
    """The parameters of least weighted squares plus opinions, by Levenberg-Marquardt from `theta`."""

    def objective(at: Array) -> float:
        residual = y - _model(at, columns)[0]
        return float((weights * residual**2).sum() + (at - mean) @ precision @ (at - mean))

    damping, best = 1e-3, objective(theta)
    for _ in range(ITERATIONS):
        value, gradient = _model(theta, columns)
        pull = gradient.T @ (weights * (y - value)) + precision @ (mean - theta)
        information = gradient.T @ (weights[:, None] * gradient) + precision
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
