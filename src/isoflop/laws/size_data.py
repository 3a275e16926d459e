"""The Chinchilla law, loss as a function of size and images seen: L = E + A·n^-α + B·d^-β (arXiv 2203.15556, eq. 2).

n is *training* FLOPs per image (3 × forward), d images seen, so n·d is the compute of the run. FLOPs replace
parameters because the patch size of a vision model changes its compute and not its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, rungs, summarise
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.curve import ORIGINS, POWERS, Candidate, CurveLaw, forecast
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


def fit_thetas(points: Points, starts: int = 16) -> Fit:
    """The best fit to `points`. The same for every seed and order.

    Huber's bend follows the noise until it settles; the few opinions are those of the prior below.
    """
    z, weight = points.z, points.weight
    centre = float(points.x.mean()), float(points.y.mean())
    x, y = points.x - centre[0], points.y - centre[1]
    model, (lower, upper) = size_data_model(x, y), _box(z)
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
    best = np.array([z[rung == r].min() for r in range(int(rung.max()) + 1)])[rung]
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


def _backtest(points: Points, rung: NDArray[np.intp], kept: NDArray[np.bool_]) -> tuple[Errors, dict[int, Fit]]:
    """Rolling origins over compute: from every lower part of the ladder, predict the best run of each later rung."""
    x, y, z = points.x, points.y, points.z
    errors, fits, top = Errors(), dict[int, Fit](), int(rung.max())
    best = np.array([np.flatnonzero(rung == r)[np.argmin(z[rung == r])] for r in range(top + 1)])
    for origin in range(max(1, top - ORIGINS), top):
        past = (rung <= origin) & kept
        if past.sum() < 6 or np.ptp(x[past]) < 0.3 or np.ptp(y[past]) < 0.3:
            continue
        fit = fits[origin] = fit_thetas(points[past], 5)
        at = best[origin + 1 :]
        predicted = size_data_model(x[at] - fit.centre[0], y[at] - fit.centre[1])(fit.theta[None])[0][0]
        errors |= {(origin, int(rung[k])): float(e) for k, e in zip(at, z[at] - predicted, strict=True)}
    return errors, fits


def budget_of(x: Array, y: Array) -> NDArray[np.intp]:
    """The rung of each run; where runs share no budgets, bins of compute by a factor of 2."""
    rung = rungs(np.exp(x + y))
    if np.median(np.bincount(rung)) >= 3 or rung.max() < 2:
        return rung
    return np.unique(np.floor((x + y - (x + y).max() - 1e-9) / np.log(2.0)), return_inverse=True)[1].astype(np.intp)


def _frontier_forecast(points: Points, rung: NDArray[np.intp], fit: Fit, fits: Mapping[int, Fit]) -> CurveLaw | None:
    """The forecast of the best loss at a budget, with this law among the candidates; None for one budget."""
    if rung.max() < 1:
        return None
    t, z = points.x + points.y, points.z
    code = np.unique(np.round(points.x, 4) + 1j * np.round(points.y, 3), return_inverse=True)[1]
    z = (np.bincount(code, z) / np.bincount(code))[code]  # repeats of a run are one
    best = [int(np.flatnonzero(rung == r)[np.argmin(z[rung == r])]) for r in range(int(rung.max()) + 1)]
    if np.ptp(z[best]) < 1e-9:
        return None
    # The best run of a budget is not of the best size: subtract the difference, as the law gives it.
    t, z, log_n = t[best], z[best], points.x[best]
    e, a, b, alpha, beta = natural_units(fit.theta[None], fit)[0]
    optimum = np.clip(_log_optimum(a, b, alpha, beta, t), points.x.min(), points.x.max())
    at, least = (np.log(e + a * np.exp(-alpha * v) + b * np.exp(-beta * (t - v))) for v in (log_n, optimum))
    step = float(np.sqrt(np.mean(np.diff(z) ** 2)))
    clean = min(CLEAN * step / fit.noise, 100.0) ** 2
    trust = clean**2 / (1.0 + clean)
    z = z - min(trust, 1.0) * np.maximum(at - least, 0.0)

    def frontier(fit: Fit, last: int) -> tuple[Array, Array]:
        """The law along its optimum, E + K·C^-γ, in t = log(C / the largest): as it is, and through budget `last`."""
        e, a, b, alpha, beta = natural_units(fit.theta[None], fit)[0]
        gamma = alpha * beta / (alpha + beta)
        log_n = _log_optimum(a, b, alpha, beta, t[-1])
        log_k = float(
            np.logaddexp(np.log(max(a, 1e-300)) - alpha * log_n, np.log(max(b, 1e-300)) - beta * (t[-1] - log_n))
        )
        at_last = float(np.log(e + np.exp(log_k - gamma * (t[last] - t[-1]))))
        moved = z[last] - at_last
        return np.array([log_k, gamma, e]), np.array([log_k + moved, gamma, e * np.exp(moved)])

    first = 1 + max(0, len(t) - 2 - ORIGINS)
    now, past = frontier(fit, -1), {o: frontier(f, o) for o, f in fits.items()}
    more = [
        Candidate(
            name, "offset", float(t[0] - t[-1]), now[k], {o - first: p[k] for o, p in past.items() if o >= first}, trust
        )
        for k, name in enumerate((SIZE_DATA, FROM_LAST))
    ]
    return forecast(np.exp(t), np.exp(z), more, noise=fit.noise)


def _log_optimum(a: float, b: float, alpha: float, beta: float, log_compute: ArrayLike) -> Array:
    """Log of the size that makes A·n^-α + B·(C/n)^-β smallest."""
    ratio = np.log(max(alpha * a, 1e-300)) - np.log(max(beta * b, 1e-300))
    return np.asarray((ratio + beta * np.asarray(log_compute)) / (alpha + beta))


def _last_size(points: Points, rung: NDArray[np.intp], fits: Mapping[int, Fit]) -> tuple[float, float]:
    """The size that was best at the last rung, and how much it counts beside the law's optimum for the next rungs: by
    the regret of both at the rolling origins, four times as likely where there is none."""

    def at_best(r: int) -> float:
        here: NDArray[np.intp] = np.flatnonzero(rung == r)
        return float(points.x[here][np.argmin(points.z[here])])

    regrets = []
    for origin, fit in fits.items():
        _, a, b, alpha, beta = natural_units(fit.theta[None], fit)[0]
        for later in range(origin + 1, int(rung.max()) + 1):
            here = np.flatnonzero(rung == later)
            x, z = points.x[here], points.z[here]
            best = _log_optimum(a, b, alpha, beta, np.mean((points.x + points.y)[here]))
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
class SizeDataLaw(JsonRecord):
    """L = E + A·n^-α + B·d^-β with what is needed to predict, to doubt and to draw.

    Attributes:
        irreducible, a, b, alpha, beta: E, A, B, α, β in the units of the table (n in training FLOPs an image).
        replicates: bootstrap fits, each (E, A, B, α, β).
        noise: standard deviation of log loss about the law. `freedom` is the degrees of freedom behind it.
        exponent_intervals: name → (lo, hi) by profile of the objective, at `level`; names as in `exponents()`.
        backtests: errors of the forecast of the frontier at rolling origins over compute.
        runs: errors of the law itself at the same origins; None in old files. They correct a given run's prediction.
        last_size: the best size of the largest budget, and its weight beside the optimum in `size`.
        forecast: of the best loss at budgets beyond the data, this law among its candidates; None in old files.
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

    def predict(self, n: ArrayLike, d: ArrayLike, best: bool = False) -> Array:
        """Loss at n training FLOPs an image and d images (broadcast together).

        Beyond the largest compute measured a given run's loss is the law's, corrected by the bias of its backtests. A
        run that was chosen as the `best` of its budget is another question: there the law is moved so that its best
        is the forecast of the frontier, which goes on from the best of many runs.
        """
        x, y = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        inside = self.irreducible + self.a * x**-self.alpha + self.b * y**-self.beta
        return np.asarray(inside * np.exp(self._shift(x * y) if best else self._correction(x * y)))

    def optimal(self, compute: float) -> tuple[float, float, float]:
        """(n, d, loss) of the best run with `compute` = n·d training FLOPs: training FLOPs an image, images, loss.

        Where the table cannot tell the optimum (one term vanished) or it lies far outside, n is held between the
        smallest size measured and the largest times compute / (largest compute measured); see `warnings`.
        """
        n = float(self._optimal_n(compute, np.array([self._row()]))[0, 0])
        return n, compute / n, float(self.predict(n, compute / n, best=True))

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

    def sample(self, n: ArrayLike, d: ArrayLike, best: bool = False) -> Array:
        """Plausible losses (draws, ...) of one run at (n, d): parameters, noise of a run, and error of the form. `best`
        as in `predict`."""
        x, y = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64))
        e, a, b, alpha, beta = (column.reshape(-1, *[1] * x.ndim) for column in np.array(self.replicates).T)
        mean = np.log(e + a * x**-alpha + b * y**-beta)
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
            optimum, own = self._optimal_n(budget, np.array([self._row()]))[0], np.array(self.replicates)
            ends = self._frontier(np.minimum(budget, top), own) / self._frontier(np.minimum(budget, top))
            on = self._loss(optimum, budget / optimum, own) / self._loss(
                optimum, budget / optimum, np.array([self._row()])
            )
            mean = mean + np.where(budget > top, np.log(ends / on), 0.0).reshape(-1, *x.shape)
        return np.asarray(np.exp(predictive(mean, self._deviation(x * y), self._freedom())))

    def interval(self, n: ArrayLike, d: ArrayLike, level: float = LEVEL, best: bool = False) -> tuple[Array, Array]:
        """(lo, hi) in which the loss of one more run at (n, d) should fall with probability `level`; `best` as in
        `predict`."""
        lo, hi = np.quantile(self.sample(n, d, best), [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return lo, hi

    def optimal_interval(self, compute: float, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """(lo, hi) of the best size `n`, its images `d`, and the `loss` of the run that `optimal` proposes."""
        n = self._optimal_n(compute, np.array(self.replicates))[:, 0]
        lo, hi = (float(v) for v in np.quantile(n, [0.5 - level / 2, 0.5 + level / 2]))
        best_n, best_d, _ = self.optimal(compute)
        loss = self.interval(best_n, best_d, level, best=True)
        return {"n": (lo, hi), "d": (compute / hi, compute / lo), "loss": (float(loss[0]), float(loss[1]))}

    def _row(self) -> tuple[float, ...]:
        return self.irreducible, self.a, self.b, self.alpha, self.beta

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
        own = np.array([self._row()]) if rows is None else rows
        budget = np.asarray(compute, dtype=np.float64).reshape(-1)
        best = self._optimal_n(budget, own)
        loss = self._loss(best, budget / best, own)
        return loss.reshape(np.shape(compute)) if rows is None else loss.reshape(-1, *np.shape(compute))

    @staticmethod
    def _loss(n: Array, d: Array, rows: Array) -> Array:
        e, a, b, alpha, beta = (column[:, None] for column in rows.T)
        return np.asarray(e + a * n**-alpha + b * d**-beta)

    def _optimal_n(self, compute: ArrayLike, rows: Array) -> Array:
        """Best sizes (R, m) of `rows` at m budgets."""
        budget = np.asarray(compute, dtype=np.float64).reshape(-1)
        _, a, b, alpha, beta = (column[:, None] for column in rows.T)
        with np.errstate(all="ignore"):
            n = (alpha * a / (beta * b) * budget**beta) ** (1.0 / (alpha + beta))
        ceiling = self.n_range[1] * np.maximum(budget / self.compute_range[1], 1.0)
        n = np.where(np.isnan(n), self.n_range[0], n)
        return np.asarray(np.clip(n, self.n_range[0], ceiling))


def fit_size_data(
    n: ArrayLike,
    d: ArrayLike,
    loss: ArrayLike,
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
        seed: of the bootstrap. The fit itself does not depend on it.
        bootstrap: number of replicates.

    Raises:
        LawError: fewer than 5 points, fewer than 2 sizes or 2 durations, values not positive and finite, constant loss.
    """
    x, y, z = check_table(n, d, loss)
    points = thinned(x, y, z)
    rung = budget_of(points.x, points.y)
    window, kept, errors, fits = choose_window(points, rung)
    fit = fit_thetas(points[kept])
    replicates = bootstrap_thetas(fit, seed, bootstrap)
    ahead = _frontier_forecast(points, rung, fit, fits)
    backtests = Backtests((), (), 0.08, 3.0, None, LEVEL)
    if ahead is not None:
        backtests = Backtests(ahead.distances, ahead.errors, ahead.drift, ahead.freedom, ahead.backtest_coverage, LEVEL)
    tests = np.array(
        [((points.x + points.y)[rung == later].mean() - (points.x + points.y)[rung <= origin].max(), error,
          fits[origin].noise, origin) for (origin, later), error in errors.items()]
    ).reshape(-1, 4).T  # fmt: skip
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
        converged=fit.converged, forecast=ahead,
        last_size=_last_size(points, rung, fits),
        runs=summarise(tests[0], tests[1], tests[2], tests[3], LEVEL) if errors else None,
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
