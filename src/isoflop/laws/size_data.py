"""The Chinchilla law, loss as a function of size and images seen: L = E + A·n^-α + B·d^-β (arXiv 2203.15556, eq. 2).

n is *training* FLOPs per image (3 × forward), d images seen, so n·d is the compute of the run. FLOPs replace
parameters because the patch size of a vision model changes its compute and not its parameters.

Where runs saw images more than once, two forms with repeats stand beside it, those of `finite_data`: d becomes the
saturating number of effective images, and repeated views may increase the loss by H·n^λ·r^κ·U^-μ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, rungs, summarise
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.curve import FLOOR, KNOTS, ORIGINS, POWERS, SHRUNK, TABULATED, Candidate, CurveLaw, forecast
from isoflop.laws.finite_data import NAMES, NO_REPEATS, finite_data_model
from isoflop.laws.profile import profile_interval
from isoflop.laws.solve import WINSORISED, Array, Model, Prior, minimise, project, robust_scale

# The numerics of E + A·n^-α + B·d^-β: variable projection, joint fit, replicates, profiles, choice of the window.
#
# Works on logs: x = log n, y = log d, z = log loss; theta = (log A, log B, E, α, β) for x and y about their means.


EXPONENTS = np.geomspace(0.05, 2.0, 14)
MOST = 240
"""Larger tables are averaged in cells of size and images: a law has five parameters, whatever the number of rows."""


@dataclass(frozen=True)
class Points:
    """What a law is fitted to: logs of n, d, different images and loss. `weight` is the number of rows that each point
    stands for, and `spread` the sum of the squared deviations of their log loss from the point's."""

    x: Array
    y: Array
    u: Array
    z: Array
    weight: Array
    spread: Array

    def __getitem__(self, kept: NDArray[np.bool_]) -> Points:
        return Points(*(v[kept] for v in (self.x, self.y, self.u, self.z, self.weight, self.spread)))

    @property
    def repeated(self) -> bool:
        """Whether a run saw images more than once."""
        return bool((self.y - self.u > np.log(1.01)).any())

    @property
    def rows(self) -> int:
        return int(self.weight.sum())

    def noise(self, residual: Array) -> float:
        """The standard deviation of the rows' log loss about a law that leaves `residual` at the points."""
        if self.rows == self.z.size:
            return robust_scale(residual, 5)
        return float(np.sqrt((self.weight @ residual**2 + self.spread.sum()) / (self.rows - 5)))


def thinned(x: Array, y: Array, u: Array, z: Array) -> Points:
    """The rows as points where they are `MOST` at most, else the means of cells in log n and log d of each rung.

    A cell's loss is that of a law (fitted to the cells' medians) where the cell's mean lies, moved by the mean of its
    rows' residuals, clipped as Huber's loss does: neither the slope within a cell nor an outlier moves it. The same for
    every order of the rows.
    """
    if z.size <= MOST:
        return Points(x, y, u, z, np.ones_like(z), np.zeros_like(z))
    order = np.lexsort((z, u, y, x))
    x, y, u, z = x[order], y[order], u[order], z[order]
    rung, side = rungs(np.exp(x + y)), 1e-6
    while True:
        columns = (rung, *(np.floor(v / side).astype(np.int64) for v in (x, y, np.minimum(u, y + 1.0))))
        code = np.zeros(z.size, dtype=np.int64)
        for column in columns:  # paired and numbered anew, so that the codes stay small
            code = np.unique(code * (np.ptp(column) + 1) + column - column.min(), return_inverse=True)[1]
        if code.max() < MOST:
            break
        side = max(2 * side, 0.05)
        if side > 10:  # more rungs than points: a ladder without rungs
            rung, side = np.zeros_like(rung), 0.05
    count = np.bincount(code).astype(np.float64)

    def mean(values: Array) -> Array:
        return np.asarray(np.bincount(code, values) / count)

    by_loss = np.lexsort((z, code))
    middle = np.cumsum(count).astype(np.int64) - (count.astype(np.int64) + 1) // 2
    rough = Points(mean(x), mean(y), mean(u), z[by_loss][middle], count, np.zeros_like(count))
    law = fit_thetas(rough, 8, HURTING if rough.repeated else FRESH)
    residual = z - law.at(x, y, u)
    scale = robust_scale(residual, 5)
    shift = mean(np.clip(residual, -1.345 * scale, 1.345 * scale))
    spread = np.bincount(code, np.clip(residual - shift[code], -2 * scale, 2 * scale) ** 2) / WINSORISED
    return Points(rough.x, rough.y, rough.u, law.prediction + shift, count, spread)


@dataclass(frozen=True)
class Fit:
    """A fit with what its replicates and profiles need; `centre` is the means of log n and log d."""

    theta: Array
    model: Model
    points: Points
    prediction: Array
    noise: float
    delta: float
    freedom: float
    lower: Array
    upper: Array
    prior: Prior
    centre: tuple[float, float]
    agreement: float
    converged: bool
    variant: str
    free: tuple[int, ...]

    def at(self, x: Array, y: Array, u: Array) -> Array:
        """Log loss at logs of n, d and different images."""
        return np.asarray(self._model_at(x, y, u)(self.theta[None])[0][0])

    def _model_at(self, x: Array, y: Array, u: Array) -> Model:
        x, y, u = x - self.centre[0], y - self.centre[1], u - self.centre[1]
        return size_data_model(x, y) if self.variant == FRESH else repeated_model(x, y, u, self.free)


def check_table(n: ArrayLike, d: ArrayLike, loss: ArrayLike) -> tuple[Array, Array, Array]:
    """The logs of the columns, or LawError where no law can be fitted to them."""
    x, y, z = (np.log(c) for c in positive_columns(n=n, d=d, loss=loss))
    if z.size < 5:
        raise LawError(f"a law of size and data has 5 parameters: {z.size} runs are too few, give at least 5")
    if np.ptp(x) < 0.05 or np.ptp(y) < 0.05:
        raise LawError("a law of size and data needs at least two sizes and two durations")
    if np.ptp(z) < 1e-9:
        raise LawError("the loss is the same in every run: there is nothing to fit")
    return x, y, z


def size_data_model(x: Array, y: Array) -> Model:
    """log(E + A·n^-α + B·d^-β) of theta = (log A, log B, E, α, β), with centred x = log n and y = log d."""

    def evaluate(theta: Array) -> tuple[Array, Array]:
        log_a, log_b, e, alpha, beta = theta.T[:, :, None]
        size, data = np.exp(log_a - alpha * x), np.exp(log_b - beta * y)
        total = e + size + data
        jacobian = np.empty((*total.shape, 5))
        jacobian[:, :, 2] = inverse = 1.0 / total
        jacobian[:, :, 0] = size = size * inverse
        jacobian[:, :, 1] = data = data * inverse
        jacobian[:, :, 3], jacobian[:, :, 4] = -x * size, -y * data
        return np.log(total), jacobian

    return evaluate


FRESH, SATURATING, HURTING = "fresh", "saturating", "hurting"
"""What a repeated image is worth: as much as a new one; ever less; or it increases the loss in the end."""
UNSEEN = 20.0
"""Images that never repeat are of a set e^20 times as large as what a run saw."""
REPEATS = {"log_r": (2.7, 1.0), "lambda": (0.3, 0.3), "kappa": (1.0, 0.4), "mu": (0.3, 0.3)}
"""Weak priors (mean, deviation) of what the runs may leave open: R* is 15 in arXiv 2305.16264."""
HARM = (-3.0, 2.0)
"""The same of log harm at ten epochs, relative to the loss."""
NO_HARM = (1e12, 0.0, 0.0, 1.0, 0.0)
"""R*, H, λ, κ, μ of a law without repeats."""


def repeated_model(x: Array, y: Array, u: Array, free: tuple[int, ...]) -> Model:
    """The model of `finite_data` of its `free` parameters, the first five of which are those of `size_data_model`."""
    whole = finite_data_model(x, y, u, None, True)
    still = np.array([(NO_REPEATS | {"log_h": -300.0}).get(name, 0.0) for name in NAMES])

    def evaluate(theta: Array) -> tuple[Array, Array]:
        full = np.repeat(still[None], len(theta), axis=0)
        full[:, free] = theta
        value, jacobian = whole(full)
        return value, jacobian[:, :, free]

    return evaluate


def _free(variant: str, points: Points) -> tuple[int, ...]:
    """Positions in `NAMES` of what a variant fits; μ needs several sets of images."""
    names = {FRESH: (), SATURATING: ("log_r",), HURTING: ("log_r", "log_h", "lambda", "kappa", "mu")}[variant]
    known = points.u[points.y > points.u]
    one = known.size == 0 or np.ptp(known) < 0.1
    return (*range(5), *(NAMES.index(name) for name in names if not (one and name == "mu")))


def _grid_starts(x: Array, y: Array, z: Array, weight: Array, delta: float, keep: int) -> Array:
    """The `keep` best of the grid of exponents, with E, A, B >= 0 projected out."""
    alpha, beta = (g.ravel() for g in np.meshgrid(EXPONENTS, EXPONENTS))
    columns = np.stack([np.exp(-alpha[:, None] * x), np.exp(-beta[:, None] * y), np.ones((alpha.size, z.size))], axis=2)
    coefficients, objective = project(columns, z, delta, weight)
    order = np.argsort(objective, kind="stable")[:keep]
    a, b, e = coefficients[order].T
    tiny = np.exp(z.min()) * 1e-6
    return np.stack([np.log(np.maximum(a, tiny)), np.log(np.maximum(b, tiny)), e, alpha[order], beta[order]], axis=1)


def _box(z: Array) -> tuple[Array, Array]:
    floor, top = z.min(), z.max()
    lower = np.array([floor - 14.0, floor - 14.0, 0.0, 0.01, 0.01])
    upper = np.array([top + 5.0, top + 5.0, np.exp(floor), 3.0, 3.0])
    return lower, upper


def _with_repeats(
    theta: Array, free: tuple[int, ...], points: Points, centre: tuple[float, float]
) -> tuple[Array, Array, Array, Array, Array]:
    """Starts, box, prior means and deviations of a variant with repeats, from starts (S, 5) of the plain law."""
    names = [NAMES[k] for k in free[5:]]
    epochs = np.exp(points.y - points.u)
    most, u = max(float(epochs.max()), 1.5), float(np.median(points.u[epochs >= min(epochs.max(), 1.01)])) - centre[1]
    level = float(points.z.mean())
    mean, deviation = ([*m] for m in ((0.0, 0.0, 0.0, 0.4, 0.4), (np.inf, np.inf, np.inf, 0.5, 0.5)))
    lows, highs, firsts = [], [], []
    for name in names:
        m, sd = REPEATS.get(name, (0.0, 0.0))
        low, high, first = {
            "log_r": (-2.0, 9.0, (2.7, 0.7, 2.7)), "lambda": (0.0, 2.0, (0.3, 0.2, 0.5)),
            "kappa": (0.2, 3.0, (1.0, 1.0, 1.5)), "mu": (0.0, 2.0, (0.3, 0.3, 0.3)),
            "log_h": (level - 25.0, level + 5.0, tuple(level + np.log((0.03, 0.01, 0.2)) - np.log(most))),
        }[name]  # fmt: skip
        if name == "log_h":  # the harm of ten epochs of the usual images
            m, sd = (
                level + HARM[0] - REPEATS["kappa"][0] * np.log(9.0) + ("mu" in names) * REPEATS["mu"][0] * u,
                HARM[1],
            )
        mean.append(m)
        deviation.append(sd)
        lows.append(low)
        highs.append(high)
        firsts.append(first)
    lower, upper = _box(points.z)
    more = np.array(firsts).T[: 3 if len(names) > 1 else 2]
    starts = np.concatenate([np.column_stack([theta, np.repeat(row[None], len(theta), axis=0)]) for row in more])
    return (
        starts, np.concatenate([lower, lows]), np.concatenate([upper, highs]), np.array(mean), np.array(deviation)
    )  # fmt: skip


def fit_thetas(points: Points, starts: int = 16, variant: str = FRESH) -> Fit:
    """The best fit of a variant to `points`. The same for every seed and order.

    Huber's bend follows the noise until it settles; the few opinions are those of the prior below.
    """
    z, weight = points.z, points.weight
    centre = float(points.x.mean()), float(points.y.mean())
    x, y, u = points.x - centre[0], points.y - centre[1], points.u - centre[1]
    free, (lower, upper) = _free(variant, points), _box(z)
    theta = _grid_starts(x, y, z, weight, 0.03, starts)
    # Weak priors on parameters that the data do not constrain: exponents are within a factor of a few of 0.4.
    mean, deviation = np.array([0.0, 0.0, 0.0, 0.4, 0.4]), np.array([np.inf, np.inf, np.inf, 0.5, 0.5])
    model = size_data_model(x, y)
    if variant != FRESH:
        model = repeated_model(x, y, u, free)
        theta, lower, upper, mean, deviation = _with_repeats(theta, free, points, centre)
    prior = Prior(mean, np.zeros(mean.size))
    delta, noise = 0.03, 0.0
    for _ in range(10):
        before = noise
        solution = minimise(
            model, theta, z, delta=delta, lower=lower, upper=upper, weights=weight, prior=prior, iterations=12
        )
        theta = solution.theta
        residual = z - model(theta[[int(np.argmin(solution.objective))]])[0][0]
        noise = max(points.noise(residual), 1e-7)
        if z.size <= 7:  # too few to tell the noise from the fit: believe in at least 1 %
            noise = max(noise, 0.01)
        delta = 1.345 * noise
        prior = Prior(mean, (noise / deviation) ** 2)
        if abs(noise - before) <= 0.02 * noise:
            break
    solution = minimise(
        model, theta, z, delta=delta, lower=lower, upper=upper, weights=weight, prior=prior, iterations=1000
    )
    best = int(np.argmin(solution.objective))
    scale = noise**2
    agreement = float(np.mean(solution.objective - solution.objective[best] <= 1e-3 * scale))
    return Fit(
        solution.theta[best], model, points, model(solution.theta[[best]])[0][0], noise, delta,
        float(max(points.rows - 5, 1)), lower, upper, prior, centre, agreement, bool(solution.converged[best]),
        variant, free,
    )  # fmt: skip


def natural_units(theta: Array, fit: Fit) -> Array:
    """(E, A, B, α, β) in the units of the table from centred theta (R, P); with repeats also (R*, H, λ, κ, μ)."""
    log_a, log_b, e, alpha, beta = theta.T[:5]
    (x, y), none = fit.centre, np.zeros_like(e)
    columns = [e, np.exp(log_a + alpha * x), np.exp(log_b + beta * y), alpha, beta]
    if fit.variant != FRESH:
        found = dict(zip((NAMES[k] for k in fit.free[5:]), theta.T[5:], strict=True))
        lam, kappa, mu = (found.get(name, none) for name in ("lambda", "kappa", "mu"))
        harm = np.exp(found["log_h"] - lam * x + mu * y) if "log_h" in found else none
        columns += [np.exp(found["log_r"]), harm, lam, kappa, mu]
    return np.stack(columns, axis=1)


def effective_images(images: ArrayLike, unique: ArrayLike, limit: ArrayLike) -> Array:
    """How many different images teach as much as `images`, of which `unique` are different: repeats are worth less and
    less, all of them at most `limit` times the different ones (arXiv 2305.16264, equation 5: R*)."""
    seen, known = np.asarray(images, dtype=np.float64), np.asarray(unique, dtype=np.float64)
    extra = np.maximum(seen / known - 1.0, 0.0)
    return np.asarray(np.minimum(seen, known) - np.where(extra > 0, known, 0.0) * limit * np.expm1(-extra / limit))


def loss_of(rows: Array, n: ArrayLike, d: ArrayLike, unique: ArrayLike | None = None, axes: int = 1) -> Array:
    """Losses (R, ...) of `rows` in natural units, (R, 5) or (R, 10), at n and d, of which `unique` are different.

    n and d have `axes` axes, and may have one for the rows before them.
    """
    size, images = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
    columns = [c.reshape(-1, *[1] * axes) for c in rows.T]
    e, a, b, alpha, beta = columns[:5]
    if rows.shape[1] == 5 or unique is None:
        return np.asarray(e + a * size**-alpha + b * images**-beta)
    limit, harm, lam, kappa, mu = columns[5:]
    known = np.asarray(unique, dtype=np.float64)
    epochs, effective = images / known, effective_images(images, known, limit)
    again = np.log(np.maximum(epochs - 1.0 + np.exp(-epochs), 1e-12))
    with np.errstate(all="ignore"):
        hurt = np.where(harm > 0, np.exp(np.log(harm) + lam * np.log(size) + kappa * again - mu * np.log(known)), 0.0)
    return np.asarray(e + a * size**-alpha + b * effective**-beta + hurt)


def best_sizes(rows: Array, compute: Array, unique: float | None, low: float, high: ArrayLike) -> Array:
    """Best sizes (R, m) of `rows` at m budgets, between `low` and `high` (m,)."""
    _, a, b, alpha, beta = (column[:, None] for column in rows.T[:5])
    with np.errstate(all="ignore"):
        n = (alpha * a / (beta * b) * compute**beta) ** (1.0 / (alpha + beta))
    n = np.clip(np.where(np.isnan(n), low, n), low, high)
    if rows.shape[1] == 5 or unique is None or (compute / n).max() <= unique:
        return np.asarray(n)
    # By golden section, of all at once: repeats move the optimum to larger sizes, by no formula.
    left, right = np.log(np.broadcast_to(low, n.shape)), np.log(np.broadcast_to(high, n.shape))
    share = 0.5 * (np.sqrt(5.0) - 1.0)

    def loss(log_n: Array) -> Array:
        return np.asarray(loss_of(rows, np.exp(log_n), compute / np.exp(log_n), unique))

    inner, outer = right - share * (right - left), left + share * (right - left)
    at_inner, at_outer = loss(inner), loss(outer)
    for _ in range(28):
        lower = at_inner < at_outer
        left, right = np.where(lower, left, inner), np.where(lower, outer, right)
        probe = np.where(lower, right - share * (right - left), left + share * (right - left))
        value = loss(probe)
        inner, outer, at_inner, at_outer = (
            np.where(lower, probe, outer), np.where(lower, inner, probe),
            np.where(lower, value, at_outer), np.where(lower, at_inner, value),
        )  # fmt: skip
    return np.asarray(np.exp(0.5 * (left + right)))


def bootstrap_thetas(fit: Fit, seed: int, count: int) -> Array:
    """Replicates (count, P): the design stays, the noise is drawn anew with a variance as uncertain as it is."""
    if count < 1:
        return fit.theta[None]
    rng = np.random.default_rng(seed)
    sigma = fit.noise * np.sqrt(fit.freedom / rng.chisquare(fit.freedom, count))
    sigma = np.minimum(sigma, 3.0 * fit.noise)
    z, weight = fit.points.z, fit.points.weight
    target = fit.prediction + sigma[:, None] / np.sqrt(weight) * rng.standard_normal((count, z.size))
    size = fit.theta.size
    start = np.broadcast_to(fit.theta, (count, size)).copy()
    # A parameter that sits on its bound would stay there: give it room to leave.
    start[:, 2] = np.maximum(start[:, 2], 0.05 * np.exp(z.min()))
    start[:, :2] = np.maximum(start[:, :2], z.min() - 4.0)
    opinion = fit.prior.weight > 0
    width = np.where(opinion, fit.noise / np.sqrt(np.where(opinion, fit.prior.weight, 1.0)), 0.0)
    jitter = Prior(fit.prior.mean + width * rng.standard_normal((count, size)), fit.prior.weight)
    solution = minimise(
        fit.model, start, target, delta=fit.delta, lower=fit.lower, upper=fit.upper, weights=weight, prior=jitter,
        iterations=60,
    )  # fmt: skip
    return solution.theta


def condition_number(fit: Fit) -> float:
    """Of the normal matrix with columns scaled to one: how well the table tells the parameters apart."""
    jacobian = fit.model(fit.theta[None])[1][0][:, :5] * np.sqrt(fit.points.weight)[:, None]
    norms = np.linalg.norm(jacobian, axis=0)
    if (norms <= 1e-9).any():
        return float("inf")
    singular = np.linalg.svd(jacobian / norms, compute_uv=False)
    return float((singular[0] / max(singular[-1], 1e-300)) ** 2)


def exponent_profiles(fit: Fit, level: float) -> dict[str, tuple[float, float]]:
    """Profile intervals of α and β."""
    intervals = {}
    for name, k in (("alpha", 3), ("beta", 4)):
        intervals[name] = profile_interval(
            fit.model, fit.theta, fit.points.z, k, delta=fit.delta, lower=fit.lower, upper=fit.upper, level=level,
            weights=fit.points.weight, spread=float(fit.points.spread.sum()), prior=fit.prior,
        )  # fmt: skip
    return intervals


Errors = dict[tuple[int, int], float]
"""(origin, predicted rung) → error of the best run there."""

WINDOWS = ((np.inf, 0), (1.5, 0), (np.inf, 1), (1.5, 1))
"""Runs a law may be fitted to: at most this factor above the best loss of their budget, without the lowest rungs."""
CLEAN = 0.15
"""The noise about a law, as a share of what a rung gains, at which it is half trusted as a candidate: much less where
the law does not fit, more where it does."""
SIZE_DATA, FROM_LAST = "size and data", "size and data, from the last rung"


def choose_window(points: Points, rung: NDArray[np.intp]) -> tuple[str, NDArray[np.bool_], Errors, dict[int, Fit]]:
    """The window with the smallest backtest errors, these, and the fits to the runs up to each rung: all runs, unless
    another one is better by a third on the same predictions (three at least). Runs far above the frontier or at tiny
    budgets follow the law least."""
    x, y, z = points.x, points.y, points.z
    best = _best_of_budget(z, rung)
    everything = np.ones(z.size, dtype=bool)
    reference, fits = _backtest(points, rung, everything)
    choice = ("all runs", everything, reference, fits)
    score = 0.67
    for factor, dropped in WINDOWS[1:]:
        kept = (z - best <= np.log(factor)) & (rung >= dropped)
        if kept.all() or kept.sum() < 8 or np.ptp(x[kept]) < 0.3 or np.ptp(y[kept]) < 0.3:
            continue
        errors, fits = _backtest(points, rung, kept)
        common = sorted(set(errors) & set(reference))
        if len(common) < 3:
            continue
        ratio = np.sqrt(sum(errors[k] ** 2 for k in common) / sum(reference[k] ** 2 for k in common))
        if ratio < score:
            parts = [f"within a factor of {factor:g} of the best of their budget"] if np.isfinite(factor) else []
            parts += ["without the lowest budget"] if dropped else []
            choice, score = ("runs " + " and ".join(parts), kept, errors, fits), float(ratio)
    return choice


def _backtest(
    points: Points, rung: NDArray[np.intp], kept: NDArray[np.bool_], variant: str = FRESH
) -> tuple[Errors, dict[int, Fit]]:
    """Rolling origins over compute: from every lower part of the ladder, predict the best run of each later rung."""
    x, y, z = points.x, points.y, points.z
    errors, fits, top = Errors(), dict[int, Fit](), int(rung.max())
    best = np.array([np.flatnonzero(rung == r)[np.argmin(z[rung == r])] for r in range(top + 1)])
    for origin in range(max(1, top - ORIGINS), top):
        past = (rung <= origin) & kept
        if past.sum() < 6 or np.ptp(x[past]) < 0.3 or np.ptp(y[past]) < 0.3:
            continue
        fit = fits[origin] = fit_thetas(points[past], 5, variant)
        at = best[origin + 1 :]
        predicted = fit.at(x[at], y[at], points.u[at])
        errors |= {(origin, int(rung[k])): float(e) for k, e in zip(at, z[at] - predicted, strict=True)}
    return errors, fits


@dataclass(frozen=True)
class Tested:
    """A variant fitted to all points and at every origin, the errors there, and its weight among the variants."""

    name: str
    fit: Fit
    fits: dict[int, Fit]
    errors: Errors
    weight: float


PRIOR_VARIANTS = {FRESH: 1.0, SATURATING: 2.0, HURTING: 1.0}


NEAR, MANY = 1.12, 30
"""Where that leaves so many runs, the forms with repeats are also fitted to those within this factor of the best loss
of their budget: hundreds of epochs say little about the best runs."""


def choose_variants(points: Points, rung: NDArray[np.intp]) -> tuple[str, list[Tested]]:
    """The window, and the forms with and without repeats that were fitted to it: all runs, unless those near the best
    of their budget predict it better by a third."""
    everything = weigh_variants(points, rung, np.ones(points.z.size, dtype=bool))
    kept = points.z - _best_of_budget(points.z, rung) <= np.log(NEAR)
    if kept.sum() < MANY or kept.all() or not points[kept].repeated:
        return "all runs", everything
    near = weigh_variants(points, rung, kept)
    common = set(near[0].errors) & set(everything[0].errors)
    square = [sum(found[0].errors[k] ** 2 for k in common) for found in (near, everything)]
    if len(common) >= 3 and square[0] < 0.67**2 * square[1]:
        return f"runs within a factor of {NEAR:g} of the best of their budget", near
    return "all runs", everything


def _best_of_budget(z: Array, rung: NDArray[np.intp]) -> Array:
    return np.array([z[rung == r].min() for r in range(int(rung.max()) + 1)])[rung]


def weigh_variants(points: Points, rung: NDArray[np.intp], kept: NDArray[np.bool_]) -> list[Tested]:
    """The forms with and without repeats, heaviest first.

    A weight is prior × (relative squared error)^-power of two kinds of errors: of all later runs at the rolling
    origins, relative to noise and distance as in `curve`; and of the runs fitted, with a penalty for parameters.
    """
    names = (FRESH, SATURATING, HURTING)
    fits = {name: fit_thetas(points[kept], variant=name) for name in names}
    tests = {name: _backtest(points, rung, kept, name) for name in names}
    points, rung = points[kept], rung[kept]
    t = points.x + points.y
    noise = min(fit.noise for fit in fits.values())
    slope = abs(float(np.polyfit(t, points.z, 1)[0]))
    square = {}
    for name, (_, past) in tests.items():
        square[name] = np.array([
            np.average(
                (points.z - fit.at(points.x, points.y, points.u))[rung > o] ** 2
                / ((slope * (t[rung > o] - t[rung <= o].max())) ** 2 + noise**2),
                weights=points.weight[rung > o],
            )
            for o, fit in past.items() if rung.max() > o
        ])  # fmt: skip
    rows, count = points.rows, len(square[FRESH])
    usual = float(np.median(np.concatenate(list(square.values())))) if count else 1.0
    power = min(POWERS[0] + POWERS[1] * count, POWERS[2])
    weights = {}
    for name in names:
        relative = ((square[name].sum() + SHRUNK * usual) / (count + SHRUNK) + FLOOR) / (usual + FLOOR)
        inside = (fits[name].noise / noise) ** 2 * (1.0 + 2.0 * fits[name].theta.size / rows)
        weights[name] = PRIOR_VARIANTS[name] * relative**-power * inside ** -min(rows / 4.0, 8.0)
    total = sum(weights.values())
    found = [Tested(n, fits[n], tests[n][1], tests[n][0], float(weights[n] / total)) for n in names]
    return sorted(found, key=lambda v: -v.weight)


def budget_of(x: Array, y: Array) -> NDArray[np.intp]:
    """The rung of each run; where runs share no budgets, bins of compute by a factor of 2."""
    rung = rungs(np.exp(x + y))
    if np.median(np.bincount(rung)) >= 3 or rung.max() < 2:
        return rung
    return np.unique(np.floor((x + y - (x + y).max() - 1e-9) / np.log(2.0)), return_inverse=True)[1].astype(np.intp)


def _frontier_forecast(
    points: Points, rung: NDArray[np.intp], variants: Sequence[Tested], unique: float | None
) -> CurveLaw | None:
    """The forecast of the best loss at a budget with `unique` different images, with these laws among the candidates;
    None for one budget."""
    if rung.max() < 1:
        return None
    fit = variants[0].fit
    t, z = points.x + points.y, points.z
    code = np.unique(np.round(points.x, 4) + 1j * np.round(points.y, 3), return_inverse=True)[1]
    if variants[0].fit.variant != FRESH:
        code = np.unique(code + 1j * np.round(points.u, 3), return_inverse=True)[1]
    z = (np.bincount(code, z) / np.bincount(code))[code]  # repeats of a run are one
    best = [int(np.flatnonzero(rung == r)[np.argmin(z[rung == r])]) for r in range(int(rung.max()) + 1)]
    if np.ptp(z[best]) < 1e-9:
        return None
    # The best run of a budget is not of the best size: subtract the difference, as the law gives it.
    t, z, log_n, log_u = t[best], z[best], points.x[best], points.u[best]
    row = natural_units(fit.theta[None], fit)
    low, high = np.exp(points.x.min()), np.exp(points.x.max())
    optimum = best_sizes(row, np.exp(t), unique, low, np.full(t.size, high))[0]
    at = np.log(loss_of(row, np.exp(log_n), np.exp(t - log_n), np.exp(log_u)))[0]
    least = np.log(loss_of(row, optimum, np.exp(t) / optimum, unique))[0]
    step = float(np.sqrt(np.mean(np.diff(z) ** 2)))
    clean = min(CLEAN * step / fit.noise, 100.0) ** 2
    trust = clean**2 / (1.0 + clean)
    z = z - min(trust, 1.0) * np.maximum(at - least, 0.0)
    ends = float(t[-1])

    def frontier(fit: Fit, last: int) -> tuple[Array, Array]:
        """The law along its optimum as a candidate in t = log(C / the largest): as it is, and through budget `last`.
        Without repeats it is E + K·C^-γ."""
        row = natural_units(fit.theta[None], fit)
        if fit.variant != FRESH and unique is not None:
            at = np.exp(KNOTS + ends)
            n = best_sizes(row, at, unique, low * 1e-3, np.full(at.size, high) * np.maximum(np.exp(KNOTS), 1.0))
            values = np.log(loss_of(row, n, at / n, unique))[0]
            return values, values + z[last] - np.interp(t[last] - ends, KNOTS, values)
        e, a, b, alpha, beta = row[0, :5]
        gamma = alpha * beta / (alpha + beta)
        log_n = _log_optimum(a, b, alpha, beta, t[-1])
        log_k = float(
            np.logaddexp(np.log(max(a, 1e-300)) - alpha * log_n, np.log(max(b, 1e-300)) - beta * (t[-1] - log_n))
        )
        at_last = float(np.log(e + np.exp(log_k - gamma * (t[last] - t[-1]))))
        moved = z[last] - at_last
        return np.array([log_k, gamma, e]), np.array([log_k + moved, gamma, e * np.exp(moved)])

    first, more = 1 + max(0, len(t) - 2 - ORIGINS), list[Candidate]()
    for variant in variants:
        now, past = frontier(variant.fit, -1), {o: frontier(f, o) for o, f in variant.fits.items()}
        form = "offset" if variant.name == FRESH or unique is None else TABULATED
        share = trust * variant.weight * len(variants)
        more += [
            Candidate(
                name, form, float(t[0] - t[-1]), now[k], {o - first: p[k] for o, p in past.items() if o >= first}, share
            )
            for k, name in enumerate((SIZE_DATA, FROM_LAST))
        ]
    return forecast(np.exp(t), np.exp(z), more, noise=fit.noise)


def _log_optimum(a: float, b: float, alpha: float, beta: float, log_compute: ArrayLike) -> Array:
    """Log of the size that makes A·n^-α + B·(C/n)^-β smallest."""
    ratio = np.log(max(alpha * a, 1e-300)) - np.log(max(beta * b, 1e-300))
    return np.asarray((ratio + beta * np.asarray(log_compute)) / (alpha + beta))


def _last_size(
    points: Points, rung: NDArray[np.intp], fits: Mapping[int, Fit], unique: float | None
) -> tuple[float, float]:
    """The size that was best at the last rung, and how much it counts beside the law's optimum for the next rungs: by
    the regret of both at the rolling origins, four times as likely where there is none."""

    def at_best(r: int) -> float:
        here: NDArray[np.intp] = np.flatnonzero(rung == r)
        return float(points.x[here][np.argmin(points.z[here])])

    regrets = []
    for origin, fit in fits.items():
        row = natural_units(fit.theta[None], fit)
        for later in range(origin + 1, int(rung.max()) + 1):
            here = np.flatnonzero(rung == later)
            x, z = points.x[here], points.z[here]
            budget, high = np.exp(np.mean((points.x + points.y)[here])), np.exp(points.x.max())
            best = np.log(best_sizes(row, budget[None], unique, np.exp(points.x.min()), high[None])[0, 0])
            picks = [float(z[np.argmin(np.abs(x - size))] - z.min()) for size in (at_best(origin), best)]
            regrets.append(picks)
    last, law = np.mean(np.square(regrets), axis=0) if regrets else (1.0, 1.0)
    usual = max(0.5 * (last + law), 1e-12)
    power = min(POWERS[0] + POWERS[1] * len(fits), POWERS[2])
    odds = 4.0 * ((law / usual + 0.05) / (last / usual + 0.05)) ** power
    return float(np.exp(at_best(int(rung.max())))), float(odds / (1.0 + odds))


def edge_share(x: Array, y: Array, z: Array) -> float | None:
    """The share of budgets with three sizes or more whose best run is at the edge of the sizes tried there; None
    without such a budget."""
    rung = rungs(np.exp(x + y))
    edges: list[bool] = []
    for level in np.unique(rung):
        here: NDArray[np.intp] = np.flatnonzero(rung == level)
        if np.unique(np.round(x[here], 6)).size >= 3:
            best = x[here][np.argmin(z[here])]
            edges.append(bool(best in (x[here].min(), x[here].max())))
    return float(np.mean(edges)) if edges else None


LEVEL = 0.9


@dataclass(frozen=True)
class Repeats(JsonRecord):
    """What repeated images are worth: further views saturate with R* = `limit` epochs, and add
    `harm`·n^`size`·r^`growth`·U^-`images` to the loss (0 of the saturating variant); see `finite_data`."""

    limit: float
    harm: float
    size: float
    growth: float
    images: float


@dataclass(frozen=True)
class SizeDataLaw(JsonRecord):
    """L = E + A·n^-α + B·d^-β with what is needed to predict, to doubt and to draw.

    With `repeats`, d is the number of effective images, and repeated views may add to the loss. Predictions are for
    `unique` different images unless another number is given.

    Attributes:
        irreducible, a, b, alpha, beta: E, A, B, α, β in the units of the table (n in training FLOPs an image).
        replicates: bootstrap fits, each (E, A, B, α, β), and where runs repeated images (R*, H, λ, κ, μ).
        noise: standard deviation of log loss about the law. `freedom` is the degrees of freedom behind it.
        exponent_intervals: name → (lo, hi) by profile of the objective, at `level`; names as in `exponents()`.
        backtests: errors of the forecast of the frontier at rolling origins over compute.
        runs: errors of the law itself at the same origins; None in old files. They correct a given run's prediction.
        last_size: the best size of the largest budget, and its weight beside the optimum in `size`.
        forecast: of the best loss at budgets beyond the data, this law among its candidates; None in old files.
        repeats: of the heaviest of `variants`, None if it has none. unique: different images there are, the most of any
            run; None if they never repeat. epochs: the most that a run saw of its images.
        variants: the weights of the forms with and without repeats, {} where no run saw an image twice.
        window: which runs were fitted ("all runs", or what backtests preferred); points: how many they are.
        n_range, d_range, compute_range: of the whole table.
        residuals: log(measured / law) in the order of the table.
        condition: condition number of the scaled normal matrix; above 1e6 the parameters are not identified.
        agreement: share of the starts that ended at the best objective (within 1e-6 of it).
        converged: whether the best fit is a stationary point.
        warnings: what a reader should know before trusting it, in plain words.
    """

    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float
    replicates: tuple[tuple[float, ...], ...]
    noise: float
    freedom: float
    exponent_intervals: dict[str, tuple[float, float]]
    level: float
    backtests: Backtests
    points: int
    n_range: tuple[float, float]
    d_range: tuple[float, float]
    compute_range: tuple[float, float]
    residuals: tuple[float, ...]
    condition: float
    agreement: float
    converged: bool
    warnings: tuple[str, ...] = ()
    window: str = "all runs"
    forecast: CurveLaw | None = field(default=None, repr=False)
    last_size: tuple[float, float] = (1.0, 0.0)
    runs: Backtests | None = field(default=None, repr=False)
    repeats: Repeats | None = None
    unique: float | None = None
    epochs: float = 0.0
    variants: dict[str, float] = field(default_factory=dict)

    def predict(self, n: ArrayLike, d: ArrayLike, best: bool = False, unique: ArrayLike | None = None) -> Array:
        """Loss at n training FLOPs an image and d images (broadcast together), of which `unique` are different.

        Beyond the largest compute measured a given run's loss is the law's, corrected by the bias of its backtests. A
        run that was chosen as the `best` of its budget is another question: there the law is moved so that its best
        is the forecast of the frontier, which goes on from the best of many runs.
        """
        x, y = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        inside = self.formula(x, y, unique)
        return np.asarray(inside * np.exp(self._shift(x * y) if best else self._correction(x * y)))

    def formula(self, n: ArrayLike, d: ArrayLike, unique: ArrayLike | None = None) -> Array:
        """What the printed law says, without backtests."""
        axes = np.broadcast(n, d).ndim
        return np.asarray(loss_of(self._row(), n, d, self.unique if unique is None else unique, axes)[0])

    def optimal(self, compute: float, unique: float | None = None) -> tuple[float, float, float]:
        """(n, d, loss) of the best run with `compute` = n·d training FLOPs: training FLOPs an image, images, loss.

        Where the table cannot tell the optimum (one term vanished) or it lies far outside, n is held between the
        smallest size measured and the largest times compute / (largest compute measured); see `warnings`.
        """
        n = float(self._optimal_n(compute, self._row(), unique)[0, 0])
        return n, compute / n, float(self.predict(n, compute / n, best=True, unique=unique))

    def size(self, compute: float) -> float:
        """The size to train with `compute`: between the optimum of the law and the best size of the largest budget, as
        the regrets of both were in backtests; far beyond the data the optimum."""
        optimum, (last, weight) = self.optimal(compute)[0], self.last_size
        if self.forecast is not None:
            weight *= float(self.forecast.lasting(np.log(compute / self.forecast.scale))) ** 4
        return float(optimum ** (1.0 - weight) * last**weight)

    def frontier_replicates(self, compute: ArrayLike) -> Array:
        """Losses (R, m) of the best run at each of m budgets, according to each bootstrap fit; beyond the data they
        keep their distance from the forecast."""
        rows, budgets = np.array(self.replicates), np.asarray(compute, dtype=np.float64)
        measured = budgets if self.forecast is None else np.minimum(budgets, self.compute_range[1])
        ratio = self._frontier(measured, rows) / self._frontier(measured)
        return np.asarray(ratio * self._frontier(budgets) * np.exp(self._shift(budgets)))

    def exponents(self) -> dict[str, float]:
        """α, β, and the exponents of C in the optimum: size n ∝ C^size, images d ∝ C^images, loss - E ∝ C^-frontier."""
        total = self.alpha + self.beta
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "size": self.beta / total,
            "images": self.alpha / total,
            "frontier": self.alpha * self.beta / total,
        }

    def sample(self, n: ArrayLike, d: ArrayLike, best: bool = False, unique: ArrayLike | None = None) -> Array:
        """Plausible losses (draws, ...) of one run at (n, d): parameters, noise of a run, and error of the form. `best`
        and `unique` as in `predict`."""
        x, y = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64))
        own = np.array(self.replicates)
        mean = np.log(loss_of(own, x, y, self.unique if unique is None else unique, x.ndim))
        if not best:
            tests = self.runs or self.backtests
            off, noise = (tests.drift * self._beyond(x * y)) ** 2, self.noise**2
            # Welch and Satterthwaite: a sum of variances is known as well as its larger part.
            freedom = (noise + off) ** 2 / (noise**2 / self.freedom + off**2 / tests.freedom)
            return np.asarray(np.exp(predictive(mean + self._correction(x * y), np.sqrt(noise + off), freedom)))
        mean = mean + self._shift(x * y)
        if self.forecast is not None:
            # What bootstrap fits differ in at the frontier's end is kept, how they go on is the forecast's to say.
            budget, top = (x * y).reshape(-1), self.compute_range[1]
            optimum, end = self._optimal_n(budget, self._row())[0], np.minimum(budget, top)
            ends = self._frontier(end, own) / self._frontier(end)
            on = self._loss(optimum, budget / optimum, own) / self._loss(optimum, budget / optimum, self._row())
            known = np.where(budget > top, np.log(ends / on), 0.0)
            if self.variants:  # repeats are another axis, of which the forecast knows what its candidates do
                at_end = self._optimal_n(end, self._row())[0]
                known = known + self._worth(optimum, budget / optimum) - self._worth(at_end, end / at_end)
            mean = mean + known.reshape(-1, *x.shape)
        return np.asarray(np.exp(predictive(mean, self._deviation(x * y), self._freedom())))

    def _worth(self, n: Array, d: Array) -> Array:
        """How much more (R, m) repeats add to the log loss according to each replicate than by the law."""
        own, unique = np.array(self.replicates), self.unique
        of_own, of_law = (
            np.log(self._loss(n, d, rows) / loss_of(rows[:, :5], n, d, unique)) for rows in (own, self._row())
        )
        return np.asarray(of_own - of_law)

    def more_images(
        self, compute: float, factor: float = 2.0, level: float = LEVEL, at: tuple[float, float] | None = None
    ) -> tuple[float, tuple[float, float]]:
        """The loss of the best run at `compute`, or of the run `at` (n, d), if there were `factor` times as many
        different images, divided by that with those there are; and its interval."""
        if self.unique is None:
            return 1.0, (1.0, 1.0)
        rows = np.array([*self.replicates, *self._row()])

        def loss(unique: float) -> Array:
            n = self._optimal_n(compute, rows, unique) if at is None else np.full((len(rows), 1), at[0])
            return loss_of(rows, n, compute / n, unique)[:, 0]

        before, after = loss(self.unique), loss(self.unique * factor)
        ratio = after / before
        lo, hi = np.quantile(ratio[:-1], [0.5 - level / 2, 0.5 + level / 2])
        point = float(ratio[-1])
        return point, (min(float(lo), point), max(float(hi), point))

    def beyond_epochs(self, d: float) -> str:
        """What to know where a run of d images repeats them more often than any run did, "" if it does not."""
        epochs = d / self.unique if self.unique else 0.0
        if epochs <= max(1.5 * self.epochs, 1.1):
            return ""
        return (
            f"this takes {epochs:.3g} epochs, but no run had more than {max(self.epochs, 1):.3g}: "
            "what so many repeats do is not known from these runs"
        )

    def interval(
        self, n: ArrayLike, d: ArrayLike, level: float = LEVEL, best: bool = False, unique: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """(lo, hi) in which the loss of one more run at (n, d) should fall with probability `level`; `best` and
        `unique` as in `predict`."""
        lo, hi = np.quantile(self.sample(n, d, best, unique), [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return lo, hi

    def optimal_interval(self, compute: float, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """(lo, hi) of the best size `n`, its images `d`, and the `loss` of the run that `optimal` proposes."""
        n = self._optimal_n(compute, np.array(self.replicates))[:, 0]
        lo, hi = (float(v) for v in np.quantile(n, [0.5 - level / 2, 0.5 + level / 2]))
        best_n, best_d, _ = self.optimal(compute)
        loss = self.interval(best_n, best_d, level, best=True)
        return {"n": (lo, hi), "d": (compute / hi, compute / lo), "loss": (float(loss[0]), float(loss[1]))}

    def _row(self) -> Array:
        """The law (1, 5), or (1, 10) where there are forms with repeats."""
        row = [self.irreducible, self.a, self.b, self.alpha, self.beta]
        if self.variants:
            r = self.repeats
            row += [r.limit, r.harm, r.size, r.growth, r.images] if r else NO_HARM
        return np.array([row])

    def _beyond(self, compute: ArrayLike) -> Array:
        return np.maximum(np.log(np.asarray(compute, dtype=np.float64) / self.compute_range[1]), 0.0)

    def frontier(self, compute: ArrayLike) -> Array:
        """The loss of the best run at each of m budgets: `optimal`, without its size."""
        budgets = np.asarray(compute, dtype=np.float64)
        return np.asarray(self._frontier(budgets) * np.exp(self._shift(budgets)))

    def drift(self, compute: ArrayLike) -> Array:
        """Standard deviation of the log loss at each budget beyond the data, without the noise of a run."""
        budgets = np.asarray(compute, dtype=np.float64)
        if self.forecast is not None:
            return np.sqrt(np.maximum(self.forecast.moments(budgets)[1] ** 2 - self.forecast.noise**2, 0.0))
        return np.asarray(self.backtests.drift * self._beyond(budgets))

    def _freedom(self) -> float:
        return min(self.freedom, self.backtests.freedom)

    def _deviation(self, compute: Array) -> Array:
        return np.sqrt(self.noise**2 + self.drift(compute) ** 2)

    def _correction(self, compute: ArrayLike) -> Array:
        return (self.runs or self.backtests).correction(self._beyond(compute))

    def _shift(self, compute: ArrayLike) -> Array:
        if self.forecast is not None:
            return self.forecast.shift(compute, self._frontier)
        return self.backtests.correction(self._beyond(compute))

    def _frontier(self, compute: Array, rows: Array | None = None) -> Array:
        """The law's own loss at its best size: (...) of the law, (R, ...) of `rows`."""
        own = self._row() if rows is None else rows
        budget = np.asarray(compute, dtype=np.float64).reshape(-1)
        best = self._optimal_n(budget, own)
        loss = self._loss(best, budget / best, own)
        return loss.reshape(np.shape(compute)) if rows is None else loss.reshape(-1, *np.shape(compute))

    def _loss(self, n: Array, d: Array, rows: Array) -> Array:
        return loss_of(rows, n, d, self.unique)

    def _optimal_n(self, compute: ArrayLike, rows: Array, unique: float | None = None) -> Array:
        """Best sizes (R, m) of `rows` at m budgets."""
        budget = np.asarray(compute, dtype=np.float64).reshape(-1)
        ceiling = self.n_range[1] * np.maximum(budget / self.compute_range[1], 1.0)
        return best_sizes(rows, budget, self.unique if unique is None else unique, self.n_range[0], ceiling)


def fit_size_data(
    n: ArrayLike,
    d: ArrayLike,
    loss: ArrayLike,
    unique: ArrayLike | None = None,
    *,
    seed: int = 0,
    bootstrap: int = 200,
) -> SizeDataLaw:
    """The law E + A·n^-α + B·d^-β of a table of runs.

    For each (α, β) of a grid the rest is linear and solved with non-negative E, A, B (variable projection, Huber
    weights on relative error); the best of the grid start a joint minimisation of the summed Huber loss of log loss.

    Args:
        n: training FLOPs per image of each run, (m,).
        d: images seen, (m,).
        loss: held-out loss (or error), positive, (m,).
        unique: different images among those seen, (m,), NaN where they never repeat; None if no run repeats any.
        seed: of the bootstrap. The fit itself does not depend on it.
        bootstrap: number of replicates.

    Raises:
        LawError: fewer than 5 points, fewer than 2 sizes or 2 durations, values not positive and finite, constant loss.
    """
    x, y, z = check_table(n, d, loss)
    u, there = _log_unique(y, unique)
    points = thinned(x, y, u, z)
    rung = budget_of(points.x, points.y)
    if points.repeated:
        window, variants = choose_variants(points, rung)
        fit, errors, fits = variants[0].fit, variants[0].errors, variants[0].fits
    else:
        window, kept, errors, fits = choose_window(points, rung)
        fit = fit_thetas(points[kept])
        variants = [Tested(FRESH, fit, fits, errors, 1.0)]
    replicates = _replicates(variants, seed, bootstrap)
    ahead = _frontier_forecast(points, rung, variants, there)
    backtests = Backtests((), (), 0.08, 3.0, None, LEVEL)
    if ahead is not None:
        backtests = Backtests(ahead.distances, ahead.errors, ahead.drift, ahead.freedom, ahead.backtest_coverage, LEVEL)
    tests = np.array(
        [((points.x + points.y)[rung == later].mean() - (points.x + points.y)[rung <= origin].max(), error,
          fits[origin].noise, origin) for (origin, later), error in errors.items()]
    ).reshape(-1, 4).T  # fmt: skip
    condition = condition_number(fit)
    everywhere = fit.at(x, y, u)
    row = natural_units(fit.theta[None], fit)[0].tolist()
    best_e, best_a, best_b, alpha, beta = row[:5]
    law = SizeDataLaw(
        irreducible=float(best_e), a=float(best_a), b=float(best_b), alpha=float(alpha), beta=float(beta),
        replicates=tuple(map(tuple, replicates.tolist())),
        noise=fit.noise, freedom=fit.freedom,
        exponent_intervals=exponent_profiles(fit, 0.95), level=0.95, backtests=backtests,
        window=window, points=fit.points.rows,
        n_range=(float(np.exp(x.min())), float(np.exp(x.max()))),
        d_range=(float(np.exp(y.min())), float(np.exp(y.max()))),
        compute_range=(float(np.exp((x + y).min())), float(np.exp((x + y).max()))),
        residuals=tuple((z - everywhere).tolist()), condition=condition, agreement=fit.agreement,
        converged=fit.converged, forecast=ahead,
        last_size=_last_size(points, rung, fits, there),
        runs=summarise(tests[0], tests[1], tests[2], tests[3], LEVEL) if errors else None,
        repeats=Repeats(*row[5:]) if len(row) > 5 else None, unique=there,
        epochs=float(np.exp((y - u).max())) if there else 0.0,
        variants={v.name: v.weight for v in variants} if len(variants) > 1 else {},
    )  # fmt: skip
    return replace(law, warnings=_warnings(law, fit, x, y, z))


def _log_unique(y: Array, unique: ArrayLike | None) -> tuple[Array, float | None]:
    """The log of each run's different images, far more than it saw where they never repeat; and the most of any."""
    if unique is None:
        return y + UNSEEN, None
    known = np.asarray(unique, dtype=np.float64)
    if known.shape != y.shape or not (np.isnan(known) | (known > 0)).all():
        raise LawError("`unique` must have a positive number of images for each run, or NaN where they never repeat")
    if np.isnan(known).all():
        return y + UNSEEN, None
    return np.where(np.isnan(known), y + UNSEEN, np.log(known)), float(np.nanmax(known))


def _replicates(variants: Sequence[Tested], seed: int, count: int) -> Array:
    """Bootstrap fits in natural units, of each variant as many as its weight says."""
    rows = []
    for variant in variants:
        share = max(round(count * variant.weight), variant is variants[0] and count > 0)
        if share or (count < 1 and variant is variants[0]):
            row = natural_units(bootstrap_thetas(variant.fit, seed, share), variant.fit)
            if len(variants) > 1 and row.shape[1] == 5:
                row = np.concatenate([row, np.repeat([NO_HARM], len(row), axis=0)], axis=1)
            rows.append(row)
    return np.concatenate(rows)


def _warnings(law: SizeDataLaw, fit: Fit, x: Array, y: Array, z: Array) -> tuple[str, ...]:
    found = []
    if not law.converged:
        found.append("the fit did not converge: do not use it")
    if law.agreement < 0.3:
        found.append(f"only {law.agreement:.0%} of the starts agree on the best fit")
    if law.condition > 1e6:
        found.append("these runs hardly separate size and data (ill-conditioned): exponents are uncertain")
    if fit.theta[:2].min() < z.min() - 12:
        gone = "size" if fit.theta[0] < fit.theta[1] else "images"
        found.append(f"one of the two terms vanished: the table shows no effect of {gone}")
    if law.irreducible <= 0:
        found.append("no irreducible loss is visible yet: the law may fall too far beyond the ladder")
    edge = edge_share(x, y, z)
    if edge is None:
        found.append("no budget has three sizes: nothing shows that the best size was tried")
    elif edge > 0.5:
        found.append(f"at {edge:.0%} of the budgets the best size is the smallest or largest tried: widen the sizes")
    if doubtful := doubt(law.backtests.coverage, law.backtests.level):
        found.append(doubtful)
    return tuple(found)
