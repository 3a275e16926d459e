"""The numerics of E + A·n^-α + B·d^-β: variable projection, joint fit, replicates, profiles.

Works on logs: x = log n, y = log d, z = log loss; theta = (log A, log B, E, α, β) for x and y about their means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.backtest import rungs
from isoflop.laws.columns import positive_columns
from isoflop.laws.finite_data import NAMES, NO_REPEATS, finite_data_model
from isoflop.laws.profile import profile_interval
from isoflop.laws.solve import WINSORISED, Array, Model, Prior, minimise, project, robust_scale

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
    opinion = fit.prior.drawn(fit.noise, rng, count)
    solution = minimise(
        fit.model, start, target, delta=fit.delta, lower=fit.lower, upper=fit.upper, weights=weight, prior=opinion,
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
