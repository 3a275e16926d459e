"""The Chinchilla law, loss as a function of size and images seen: L = E + A·n^-α + B·d^-β (arXiv 2203.15556, eq. 2).

n is *training* FLOPs per image (3 × forward), d images seen, so n·d is the compute of the run. FLOPs replace
parameters because the patch size of a vision model changes its compute and not its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, rungs, summarise
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.profile import profile_interval
from isoflop.laws.solve import WINSORISED, Array, Model, Prior, minimise, project, robust_scale

# The numerics of E + A·n^-α + B·d^-β: variable projection, joint fit, replicates, profiles, choice of the window.
#
# Works on logs: x = log n, y = log d, z = log loss; theta = (log A, log B, E, α, β) for x and y about their means.


EXPONENTS = np.geomspace(0.05, 2.0, 14)
MOST = 240
"""Larger tables are averaged in cells of size and images: a law has five parameters, whatever the number of rows."""
ORIGINS = 8
"""Backtests start from so many rungs at most, evenly spaced: neighbours of a finer ladder make the same mistake."""


def irreducible_profile(n: ArrayLike, d: ArrayLike, loss: ArrayLike, grid: ArrayLike) -> Array:
    """How much worse the fit is with E held at each value of `grid`, in units of noise² (twice the Huber sum); inf
    where E is not below the best loss."""
    fit, values = fit_thetas(thinned(*check_table(n, d, loss))), np.asarray(grid, dtype=np.float64)
    possible = values < fit.upper[2] * (1 - 1e-6)
    starts = np.repeat(fit.theta[None], int(possible.sum()), axis=0)
    starts[:, 2] = values[possible]
    held, free = (
        minimise(
            fit.model, start, fit.points.z, delta=fit.delta, lower=fit.lower, upper=fit.upper,
            weights=fit.points.weight, prior=fit.prior, fixed=fixed,
        ).objective
        for start, fixed in ((starts, (2,)), (fit.theta[None], ()))
    )  # fmt: skip
    worse = np.full(values.size, np.inf)
    worse[possible] = 2.0 * np.maximum(held - free, 0.0) / fit.noise**2
    return worse


@dataclass(frozen=True)
class Points:
    """What a law is fitted to: logs of n, d and loss. `weight` is the number of rows that each point stands for, and
    `spread` the sum of the squared deviations of their log loss from the point's."""

    x: Array
    y: Array
    z: Array
    weight: Array
    spread: Array

    def __getitem__(self, kept: NDArray[np.bool_]) -> Points:
        return Points(self.x[kept], self.y[kept], self.z[kept], self.weight[kept], self.spread[kept])

    @property
    def rows(self) -> int:
        return int(self.weight.sum())

    def noise(self, residual: Array) -> float:
        """The standard deviation of the rows' log loss about a law that leaves `residual` at the points."""
        if self.rows == self.z.size:
            return robust_scale(residual, 5)
        return float(np.sqrt((self.weight @ residual**2 + self.spread.sum()) / (self.rows - 5)))


def thinned(x: Array, y: Array, z: Array) -> Points:
    """The rows as points where they are `MOST` at most, else the means of cells in log n and log d of each rung.

    A cell's loss is that of a law (fitted to the cells' medians) where the cell's mean lies, moved by the mean of its
    rows' residuals, clipped as Huber's loss does: neither the slope within a cell nor an outlier moves it. The same for
    every order of the rows.
    """
    if z.size <= MOST:
        return Points(x, y, z, np.ones_like(z), np.zeros_like(z))
    order = np.lexsort((z, y, x))
    x, y, z = x[order], y[order], z[order]
    rung, side = rungs(np.exp(x + y)), 1e-6
    while True:
        columns = (rung, np.floor(x / side).astype(np.int64), np.floor(y / side).astype(np.int64))
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
    rough = Points(mean(x), mean(y), z[by_loss][middle], count, np.zeros_like(count))
    law = fit_thetas(rough, starts=8)
    residual = z - size_data_model(x - law.centre[0], y - law.centre[1])(law.theta[None])[0][0]
    scale = robust_scale(residual, 5)
    shift = mean(np.clip(residual, -1.345 * scale, 1.345 * scale))
    spread = np.bincount(code, np.clip(residual - shift[code], -2 * scale, 2 * scale) ** 2) / WINSORISED
    return Points(rough.x, rough.y, law.prediction + shift, count, spread)


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
        log_a, log_b, e, alpha, beta = (theta[:, k, None] for k in range(5))
        size, data = np.exp(log_a - alpha * x), np.exp(log_b - beta * y)
        total = e + size + data
        jacobian = np.stack([size, data, np.ones_like(size), -x * size, -y * data], axis=2) / total[:, :, None]
        return np.log(total), jacobian

    return evaluate


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


def fit_thetas(points: Points, starts: int = 16, irreducible: float | None = None) -> Fit:
    """The best fit to `points`; E is held where `irreducible` is given. The same for every seed and order.

    Huber's bend follows the noise until it settles; the few opinions are those of the prior below.
    """
    z, weight = points.z, points.weight
    centre = float(points.x.mean()), float(points.y.mean())
    x, y = points.x - centre[0], points.y - centre[1]
    model, (lower, upper) = size_data_model(x, y), _box(z)
    if irreducible is not None:
        lower[2] = upper[2] = irreducible
    theta = _grid_starts(x, y, z, weight, 0.03, starts)
    # Weak priors on parameters that the data do not constrain: exponents are within a factor of a few of 0.4.
    prior = Prior(np.array([0.0, 0.0, 0.0, 0.4, 0.4]), np.zeros(5))
    delta, noise = 0.03, 0.0
    for _ in range(10):
        before = noise
        solution = minimise(model, theta, z, delta=delta, lower=lower, upper=upper, weights=weight, prior=prior)
        theta = solution.theta
        residual = z - model(theta[[int(np.argmin(solution.objective))]])[0][0]
        noise = max(points.noise(residual), 1e-7)
        if z.size <= 7:  # too few to tell the noise from the fit: believe in at least 1 %
            noise = max(noise, 0.01)
        delta = 1.345 * noise
        prior = Prior(prior.mean, np.array([0.0, 0.0, 0.0, 1.0, 1.0]) * (noise / 0.5) ** 2)
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
    )  # fmt: skip


def natural_units(theta: Array, fit: Fit) -> Array:
    """(E, A, B, α, β) in the units of the table from centred theta (R, 5)."""
    log_a, log_b, e, alpha, beta = theta.T
    return np.stack([e, np.exp(log_a + alpha * fit.centre[0]), np.exp(log_b + beta * fit.centre[1]), alpha, beta], 1)


def bootstrap_thetas(fit: Fit, seed: int, count: int) -> Array:
    """Replicates (count, 5): the design stays, the noise is drawn anew with a variance as uncertain as it is."""
    if count < 1:
        return fit.theta[None]
    rng = np.random.default_rng(seed)
    sigma = fit.noise * np.sqrt(fit.freedom / rng.chisquare(fit.freedom, count))
    sigma = np.minimum(sigma, 3.0 * fit.noise)
    z, weight = fit.points.z, fit.points.weight
    target = fit.prediction + sigma[:, None] / np.sqrt(weight) * rng.standard_normal((count, z.size))
    start = np.broadcast_to(fit.theta, (count, 5)).copy()
    # A parameter that sits on its bound would stay there: give it room to leave.
    start[:, 2] = np.maximum(start[:, 2], 0.05 * np.exp(z.min()))
    start[:, :2] = np.maximum(start[:, :2], z.min() - 4.0)
    jitter = Prior(fit.prior.mean + 0.5 * rng.standard_normal((count, 5)) * (fit.prior.weight > 0), fit.prior.weight)
    solution = minimise(
        fit.model, start, target, delta=fit.delta, lower=fit.lower, upper=fit.upper, weights=weight, prior=jitter,
        iterations=60,
    )  # fmt: skip
    return solution.theta


def condition_number(fit: Fit) -> float:
    """Of the normal matrix with columns scaled to one: how well the table tells the parameters apart."""
    jacobian = fit.model(fit.theta[None])[1][0] * np.sqrt(fit.points.weight)[:, None]
    norms = np.linalg.norm(jacobian, axis=0)
    if (norms <= 1e-9).any():
        return float("inf")
    singular = np.linalg.svd(jacobian / norms, compute_uv=False)
    return float((singular[0] / max(singular[-1], 1e-300)) ** 2)


def exponent_profiles(fit: Fit, level: float) -> dict[str, tuple[float, float]]:
    """Profile intervals of α and β."""
    held = (2,) if fit.lower[2] == fit.upper[2] else ()
    intervals = {}
    for name, k in (("alpha", 3), ("beta", 4)):
        intervals[name] = profile_interval(
            fit.model, fit.theta, fit.points.z, k, delta=fit.delta, lower=fit.lower, upper=fit.upper, fixed=held,
            level=level, weights=fit.points.weight, spread=float(fit.points.spread.sum()), prior=fit.prior,
        )  # fmt: skip
    return intervals


Errors = dict[tuple[int, int], tuple[float, float, float, int]]
"""(origin, predicted rung) → distance, error, spread that noise and parameters explain, origin."""

WINDOWS = ((np.inf, 0), (1.5, 0), (np.inf, 1), (1.5, 1))
"""Runs a law may be fitted to: at most this factor above the best loss of their budget, without the lowest rungs."""


def choose_window(points: Points, irreducible: float | None) -> tuple[str, NDArray[np.bool_], Errors]:
    """The window with the smallest backtest errors: all runs, unless another one is better by a third on the same
    predictions (three at least). Runs far above the frontier or at tiny budgets follow the law least."""
    x, y, z = points.x, points.y, points.z
    rung = rungs(np.exp(x + y))
    best = np.array([z[rung == r].min() for r in range(int(rung.max()) + 1)])[rung]
    everything = np.ones(z.size, dtype=bool)
    reference = _backtest(points, everything, irreducible)
    choice = ("all runs", everything, reference)
    score = 0.67
    for factor, dropped in WINDOWS[1:]:
        kept = (z - best <= np.log(factor)) & (rung >= dropped)
        if kept.all() or kept.sum() < 8 or np.ptp(x[kept]) < 0.3 or np.ptp(y[kept]) < 0.3:
            continue
        errors = _backtest(points, kept, irreducible)
        common = sorted(set(errors) & set(reference))
        if len(common) < 3:
            continue
        ratio = np.sqrt(sum(errors[k][1] ** 2 for k in common) / sum(reference[k][1] ** 2 for k in common))
        if ratio < score:
            parts = [f"within a factor of {factor:g} of the best of their budget"] if np.isfinite(factor) else []
            parts += ["without the lowest budget"] if dropped else []
            choice, score = ("runs " + " and ".join(parts), kept, errors), float(ratio)
    return choice


def _backtest(points: Points, kept: NDArray[np.bool_], irreducible: float | None) -> Errors:
    """Rolling origins over compute: from every lower part of the ladder, predict the best run of each later rung."""
    x, y, z = points.x, points.y, points.z
    rung = rungs(np.exp(x + y))
    errors: Errors = {}
    top = int(rung.max())
    for origin in (
        range(1, top) if top <= ORIGINS + 1 else np.linspace(1, top - 1, ORIGINS).round().astype(int).tolist()
    ):
        past = (rung <= origin) & kept
        if past.sum() < 6 or np.ptp(x[past]) < 0.3 or np.ptp(y[past]) < 0.3:
            continue
        fit = fit_thetas(points[past], 8, irreducible)
        replicates = bootstrap_thetas(fit, 0, 40)
        for later in range(origin + 1, top + 1):
            here = np.flatnonzero(rung == later)
            at = here[[int(np.argmin(z[here]))]]
            prediction = size_data_model(x[at] - fit.centre[0], y[at] - fit.centre[1])
            distance = float((x + y)[at][0] - (x + y)[past].max())
            error = float(z[at][0] - prediction(fit.theta[None])[0][0, 0])
            spread = float(np.hypot(fit.noise, np.std(prediction(replicates)[0][:, 0])))
            errors[origin, later] = distance, error, spread, origin
    return errors


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
class SizeDataLaw(JsonRecord):
    """L = E + A·n^-α + B·d^-β with what is needed to predict, to doubt and to draw.

    Attributes:
        irreducible, a, b, alpha, beta: E, A, B, α, β in the units of the table (n in training FLOPs an image).
        replicates: bootstrap fits, each (E, A, B, α, β).
        noise: standard deviation of log loss about the law. `freedom` is the degrees of freedom behind it.
        exponent_intervals: name → (lo, hi) by profile of the objective, at `level`; names as in `exponents()`.
        backtests: rolling-origin errors over compute.
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

    def predict(self, n: ArrayLike, d: ArrayLike) -> Array:
        """Loss at n training FLOPs an image and d images (broadcast together).

        Beyond the largest compute measured the law is corrected by the bias of its own backtests.
        """
        x, y = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        inside = self.irreducible + self.a * x**-self.alpha + self.b * y**-self.beta
        return np.asarray(inside * np.exp(self.backtests.correction(self._beyond(x * y))))

    def optimal(self, compute: float) -> tuple[float, float, float]:
        """(n, d, loss) of the best run with `compute` = n·d training FLOPs: training FLOPs an image, images, loss.

        Where the table cannot tell the optimum (one term vanished) or it lies far outside, n is held between half
        the smallest size measured and the largest times compute / (largest compute measured); see `warnings`.
        """
        n = float(self._optimal_n(compute, np.array([self._row()]))[0])
        return n, compute / n, float(self.predict(n, compute / n))

    def frontier_replicates(self, compute: ArrayLike) -> Array:
        """Losses (R, m) of the best run at each of m budgets, according to each bootstrap fit."""
        rows, budgets = np.array(self.replicates), np.asarray(compute, dtype=np.float64)
        best = np.stack([self._optimal_n(float(c), rows) for c in budgets], axis=1)
        e, a, b, alpha, beta = (column[:, None] for column in rows.T)
        correction = np.exp(self.backtests.correction(self._beyond(budgets)))
        return np.asarray((e + a * best**-alpha + b * (budgets / best) ** -beta) * correction)

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

    def sample(self, n: ArrayLike, d: ArrayLike) -> Array:
        """Plausible losses (draws, ...) of one run at (n, d): parameters, noise of a run, and error of the form."""
        x, y = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64))
        e, a, b, alpha, beta = (column.reshape(-1, *[1] * x.ndim) for column in np.array(self.replicates).T)
        mean = np.log(e + a * x**-alpha + b * y**-beta) + self.backtests.correction(self._beyond(x * y))
        freedom = min(self.freedom, self.backtests.freedom)
        return np.asarray(np.exp(predictive(mean, self._deviation(x * y), freedom)))

    def interval(self, n: ArrayLike, d: ArrayLike, level: float = LEVEL) -> tuple[Array, Array]:
        """(lo, hi) in which the loss of one more run at (n, d) should fall with probability `level`."""
        lo, hi = np.quantile(self.sample(n, d), [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return lo, hi

    def optimal_interval(self, compute: float, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """(lo, hi) of the best size `n`, its images `d`, and the `loss` of the run that `optimal` proposes."""
        n = self._optimal_n(compute, np.array(self.replicates))
        lo, hi = (float(v) for v in np.quantile(n, [0.5 - level / 2, 0.5 + level / 2]))
        best_n, best_d, _ = self.optimal(compute)
        loss = self.interval(best_n, best_d, level)
        return {"n": (lo, hi), "d": (compute / hi, compute / lo), "loss": (float(loss[0]), float(loss[1]))}

    def _row(self) -> tuple[float, ...]:
        return self.irreducible, self.a, self.b, self.alpha, self.beta

    def _beyond(self, compute: ArrayLike) -> Array:
        return np.maximum(np.log(np.asarray(compute, dtype=np.float64) / self.compute_range[1]), 0.0)

    def _deviation(self, compute: Array) -> Array:
        return np.asarray(np.sqrt(self.noise**2 + (self.backtests.drift * self._beyond(compute)) ** 2))

    def _optimal_n(self, compute: float, rows: Array) -> Array:
        _, a, b, alpha, beta = rows.T
        with np.errstate(all="ignore"):
            n = (alpha * a / (beta * b) * compute**beta) ** (1.0 / (alpha + beta))
        ceiling = self.n_range[1] * max(compute / self.compute_range[1], 1.0)
        n = np.nan_to_num(n, nan=self.n_range[0], posinf=ceiling)
        return np.asarray(np.clip(n, self.n_range[0] / 2.0, ceiling))


def fit_size_data(
    n: ArrayLike,
    d: ArrayLike,
    loss: ArrayLike,
    *,
    seed: int = 0,
    bootstrap: int = 200,
    irreducible: float | None = None,
) -> SizeDataLaw:
    """The law E + A·n^-α + B·d^-β of a table of runs.

    For each (α, β) of a grid the rest is linear and solved with non-negative E, A, B (variable projection, Huber
    weights on relative error); the best of the grid start a joint minimisation of the summed Huber loss of log loss.

    Args:
        n: training FLOPs per image of each run, (m,).
        d: images seen, (m,).
        loss: held-out loss (or error), positive, (m,).
        seed: of the bootstrap. The fit itself does not depend on it.
        bootstrap: number of replicates.
        irreducible: a known E (say, shared with another family); fitted if None.

    Raises:
        LawError: fewer than 5 points, fewer than 2 sizes or 2 durations, values not positive and finite, constant loss.
    """
    x, y, z = check_table(n, d, loss)
    if irreducible is not None and not 0 <= irreducible < float(np.exp(z.min())):
        raise LawError(f"an irreducible loss of {irreducible} is not between 0 and the best loss {np.exp(z.min()):.4g}")
    points = thinned(x, y, z)
    window, kept, errors = choose_window(points, irreducible)
    fit = fit_thetas(points[kept], irreducible=irreducible)
    replicates = bootstrap_thetas(fit, seed, bootstrap)
    tests = np.array(list(errors.values())).reshape(-1, 4).T
    backtests = summarise(tests[0], tests[1], tests[2], tests[3], LEVEL)
    condition = condition_number(fit)
    everywhere = size_data_model(x - fit.centre[0], y - fit.centre[1])(fit.theta[None])[0][0]
    best_e, best_a, best_b, alpha, beta = natural_units(fit.theta[None], fit)[0]
    law = SizeDataLaw(
        irreducible=float(best_e), a=float(best_a), b=float(best_b), alpha=float(alpha), beta=float(beta),
        replicates=tuple(tuple(float(v) for v in row) for row in natural_units(replicates, fit)),
        noise=fit.noise, freedom=fit.freedom,
        exponent_intervals=exponent_profiles(fit, 0.95), level=0.95, backtests=backtests,
        window=window, points=fit.points.rows,
        n_range=(float(np.exp(x.min())), float(np.exp(x.max()))),
        d_range=(float(np.exp(y.min())), float(np.exp(y.max()))),
        compute_range=(float(np.exp((x + y).min())), float(np.exp((x + y).max()))),
        residuals=tuple((z - everywhere).tolist()), condition=condition, agreement=fit.agreement,
        converged=fit.converged,
    )  # fmt: skip
    return replace(law, warnings=_warnings(law, fit, x, y, z))


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
