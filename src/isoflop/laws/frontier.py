"""The best loss at each compute: a·(C + d)^-b + c, saturating at both ends (arXiv 2106.04560, section 2)."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, rungs
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.curve import CurveLaw, forecast
from isoflop.laws.solve import Array, Model, Prior, minimise, project, robust_scale

LEVEL = 0.9


@dataclass(frozen=True)
class FrontierPoints(JsonRecord):
    """The lower envelope of a table: the best run of each budget, in ascending compute.

    `index` is the row of each in the table; `on_edge` says that it was the smallest or largest of three or more sizes.
    """

    compute: tuple[float, ...]
    loss: tuple[float, ...]
    n: tuple[float, ...]
    d: tuple[float, ...]
    index: tuple[int, ...]
    on_edge: tuple[bool, ...]


def frontier_points(n: ArrayLike, d: ArrayLike, loss: ArrayLike) -> FrontierPoints:
    """The best run of each budget; runs within 15 % of compute of a neighbour share a budget.

    Args:
        n: training FLOPs per image, (m,). d: images seen, (m,). loss: held-out loss, (m,).
    """
    x, y, z = (np.asarray(v, dtype=np.float64) for v in (n, d, loss))
    if not x.size or not x.shape == y.shape == z.shape:
        raise LawError("the frontier needs columns n, d and loss of equal length, and at least one run")
    rung = rungs(x * y)
    index, edges = [], []
    for level in range(int(rung.max()) + 1):
        here = np.flatnonzero(rung == level)
        best = int(here[np.argmin(z[here])])
        sizes = np.unique(np.round(np.log(x[here]), 6))
        index.append(best)
        edges.append(bool(sizes.size >= 3 and x[best] in (x[here].min(), x[here].max())))
    chosen = np.array(index)
    return FrontierPoints(
        tuple((x * y)[chosen].tolist()), tuple(z[chosen].tolist()), tuple(x[chosen].tolist()),
        tuple(y[chosen].tolist()), tuple(index), tuple(edges),
    )  # fmt: skip


def lower_envelope(compute: ArrayLike, loss: ArrayLike) -> NDArray[np.intp]:
    """Rows that no cheaper run beats, in ascending compute: the frontier of runs that share no budgets."""
    x, y = np.asarray(compute, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not x.size:
        raise LawError("the envelope needs columns compute and loss of equal length, and at least one run")
    order = np.lexsort((y, x))
    best = np.minimum.accumulate(y[order])
    first = np.concatenate([[True], best[1:] < best[:-1]])
    return np.asarray(order[first])


@dataclass(frozen=True)
class FrontierLaw(JsonRecord):
    """a·(C + d)^-b + c with its doubts.

    Attributes:
        a, b, c, d: the law, C in the units of the table.
        replicates: bootstrap fits, each (a, b, c, d).
        noise, freedom: standard deviation of log loss about the law, and its degrees of freedom.
        r_squared: share of the variance of log loss that the law explains.
        backtests: rolling-origin errors of the forecast. forecast: beyond the data, None in old files.
        compute_range: what was fitted. residuals: log(measured / law).
        warnings: what a reader should know before trusting it.
    """

    a: float
    b: float
    c: float
    d: float
    replicates: tuple[tuple[float, ...], ...]
    noise: float
    freedom: float
    r_squared: float
    backtests: Backtests
    compute_range: tuple[float, float]
    residuals: tuple[float, ...]
    converged: bool
    agreement: float
    warnings: tuple[str, ...] = ()
    forecast: CurveLaw | None = field(default=None, repr=False)

    def predict(self, compute: ArrayLike) -> Array:
        """The loss of the frontier at `compute`: the law; beyond the data, the forecast."""
        x = np.asarray(compute, dtype=np.float64)
        return np.asarray(self._law(x) * np.exp(self._shift(x)))

    def _law(self, compute: Array) -> Array:
        return np.asarray(self.a * (compute + self.d) ** -self.b + self.c)

    def _shift(self, compute: Array) -> Array:
        if self.forecast is not None:
            return self.forecast.shift(compute, self._law)
        return self.backtests.correction(self._beyond(compute))

    def _beyond(self, compute: Array) -> Array:
        return np.maximum(np.log(compute / self.compute_range[1]), 0.0)

    def frontier(self, compute: ArrayLike) -> Array:
        """`predict`, by the name that it has in a law of size and data."""
        return self.predict(compute)

    def frontier_replicates(self, compute: ArrayLike) -> Array:
        """Losses (R, ...) of the frontier at each budget, according to each bootstrap fit; beyond the data they keep
        their distance from `predict`."""
        x = np.asarray(compute, dtype=np.float64)
        a, b, c, d = (column.reshape(-1, *[1] * x.ndim) for column in np.array(self.replicates).T)
        end = np.minimum(x, self.compute_range[1])
        return np.asarray((a * (end + d) ** -b + c) / self._law(end) * self.predict(x))

    def sample(self, compute: ArrayLike) -> Array:
        """Plausible losses (draws, ...) of the best run at `compute`."""
        x = np.asarray(compute, dtype=np.float64)
        if self.forecast is not None:
            mean = np.log(self.frontier_replicates(x))
            deviation = np.sqrt(
                self.noise**2 + np.maximum(self.forecast.moments(x)[1] ** 2 - self.forecast.noise**2, 0.0)
            )
        else:
            a, b, c, d = (column.reshape(-1, *[1] * x.ndim) for column in np.array(self.replicates).T)
            beyond = self._beyond(x)
            deviation = np.sqrt(self.noise**2 + (self.backtests.drift * beyond) ** 2)
            mean = np.log(a * (x + d) ** -b + c) + self.backtests.correction(beyond)
        return np.asarray(np.exp(predictive(mean, deviation, min(self.freedom + 1, self.backtests.freedom))))

    def interval(self, compute: ArrayLike, level: float = LEVEL) -> tuple[Array, Array]:
        """(lo, hi) in which the best run at `compute` should fall with probability `level`."""
        lo, hi = np.quantile(self.sample(compute), [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return lo, hi


def fit_frontier(compute: ArrayLike, loss: ArrayLike, *, seed: int = 0, bootstrap: int = 200) -> FrontierLaw:
    """The law a·(C + d)^-b + c of the frontier, one point per budget.

    Below seven points the data cannot hold four parameters: weak opinions (b near 0.25; d below the smallest budget;
    c below half the smallest loss) settle what they leave open.

    Args:
        compute: training FLOPs (any unit), (m,). loss: the best loss at each, (m,).
        seed: of the bootstrap. bootstrap: replicates.

    Raises:
        LawError: fewer than 3 points, values not positive and finite, one budget, constant loss.
    """
    x, y = positive_columns(compute=compute, loss=loss)
    if np.unique(x).size < 3:
        raise LawError(f"a frontier needs at least 3 budgets, not {np.unique(x).size}")
    if np.ptp(np.log(y)) < 1e-9:
        raise LawError("the loss is the same at every budget: there is nothing to fit")
    order = np.argsort(x, kind="stable")
    t, z = np.log(x[order]), np.log(y[order])
    fit = _fit(t, z)
    replicates = _natural(_bootstrap(fit, seed, bootstrap), fit.centre)
    a, b, c, d = (float(v) for v in _natural(fit.theta[None], fit.centre)[0])
    residual = z - fit.prediction
    budgets, index = np.unique(t, return_inverse=True)
    ahead = forecast(np.exp(budgets), np.exp(np.bincount(index, z) / np.bincount(index)))
    law = FrontierLaw(
        a, b, c, d, tuple(tuple(float(v) for v in row) for row in replicates), fit.noise, fit.freedom,
        float(1 - (residual**2).sum() / ((z - z.mean()) ** 2).sum()),
        Backtests(ahead.distances, ahead.errors, ahead.drift, ahead.freedom, ahead.backtest_coverage, LEVEL),
        (float(x.min()), float(x.max())), tuple(residual[np.argsort(order)].tolist()), fit.converged, fit.agreement,
        forecast=ahead,
    )  # fmt: skip
    return replace(law, warnings=_warnings(law, z))


@dataclass(frozen=True)
class _Fit:
    theta: Array  # log of a at the centre, b, c, d / smallest compute
    model: Model
    target: Array
    prediction: Array
    noise: float
    delta: float
    freedom: float
    lower: Array
    upper: Array
    prior: Prior
    centre: tuple[float, float]  # mean of log C, and log of its smallest
    converged: bool
    agreement: float


def _model(t: Array, centre: tuple[float, float]) -> Model:
    scale = np.exp(t - centre[0])
    unit = np.exp(centre[1] - centre[0])

    def evaluate(theta: Array) -> tuple[Array, Array]:
        log_a, b, c, shift = (theta[:, k, None] for k in range(4))
        base = scale + shift * unit
        power = np.exp(log_a - b * np.log(base))
        total = power + c
        jacobian = [power, -np.log(base) * power, np.ones_like(power), -b * power * unit / base]
        return np.log(total), np.stack(jacobian, axis=2) / total[:, :, None]

    return evaluate


def _natural(theta: Array, centre: tuple[float, float]) -> Array:
    log_a, b, c, shift = theta.T
    return np.stack([np.exp(log_a + b * centre[0]), b, c, shift * np.exp(centre[1])], axis=1)


def _fit(t: Array, z: Array, starts: int = 12) -> _Fit:
    centre = float(t.mean()), float(t.min())
    model = _model(t, centre)
    floor = float(np.exp(z.min()))
    lower = np.array([z.min() - 12.0, 0.005, 0.0, 0.0])
    upper = np.array([z.max() + 25.0, 4.0, floor * (1 - 1e-9), 1e4])
    exponents, shifts = (g.ravel() for g in np.meshgrid(np.geomspace(0.02, 2.0, 24), [0.0, 0.3, 1.0, 3.0, 10.0, 100.0]))
    base = np.exp(t - centre[0]) + shifts[:, None] * np.exp(centre[1] - centre[0])
    columns = np.stack([base ** -exponents[:, None], np.ones_like(base)], axis=2)
    coefficients, objective = project(columns, z, 0.03)
    best = np.argsort(objective, kind="stable")[:starts]
    log_a = np.log(np.maximum(coefficients[best, 0], floor * 1e-5))
    theta = np.stack([log_a, exponents[best], np.minimum(coefficients[best, 1], 0.95 * floor), shifts[best]], axis=1)
    freedom = float(max(t.size - 4, 1))
    mean, width = np.array([0.0, 0.25, 0.0, 0.0]), np.array([np.inf, 0.25, 0.5 * floor, 1.0])
    # Seven points and more speak for themselves: an opinion that is far off would be taken for noise.
    opinion = 1.0 if t.size <= 6 else 0.0
    prior = Prior(mean, opinion * (0.02 / width) ** 2)
    delta = noise = 0.03
    for _ in range(10):
        before = noise
        solution = minimise(model, theta, z, delta=delta, lower=lower, upper=upper, prior=prior)
        theta = solution.theta
        residual = z - model(theta[[int(np.argmin(solution.objective))]])[0][0]
        # With one or two points to spare the residual says little: never believe in less than 1 % there.
        noise = max(robust_scale(residual, 4), 0.01 if t.size <= 6 else 1e-7)
        delta, prior = 1.345 * noise, Prior(mean, opinion * (noise / width) ** 2)
        if abs(noise - before) <= 0.02 * noise:
            break
    solution = minimise(model, theta, z, delta=delta, lower=lower, upper=upper, prior=prior)
    k = int(np.argmin(solution.objective))
    agreement = float(np.mean(solution.objective - solution.objective[k] <= 1e-3 * noise**2))
    return _Fit(
        solution.theta[k], model, z, model(solution.theta[[k]])[0][0], noise, delta, freedom, lower, upper, prior,
        centre, bool(solution.converged[k]), agreement,
    )  # fmt: skip


def _bootstrap(fit: _Fit, seed: int, count: int) -> Array:
    if count < 1:
        return fit.theta[None]
    rng = np.random.default_rng(seed)
    sigma = np.minimum(fit.noise * np.sqrt(fit.freedom / rng.chisquare(fit.freedom, count)), 3 * fit.noise)
    target = fit.prediction + sigma[:, None] * rng.standard_normal((count, fit.target.size))
    start = np.broadcast_to(fit.theta, (count, 4)).copy()
    start[:, 2] = np.maximum(start[:, 2], 0.05 * np.exp(fit.target.min()))
    start[:, 3] = np.maximum(start[:, 3], 0.05)
    opinion = fit.prior.drawn(fit.noise, rng, count)
    return minimise(
        fit.model, start, target, delta=fit.delta, lower=fit.lower, upper=fit.upper, prior=opinion, iterations=80
    ).theta


def _warnings(law: FrontierLaw, z: Array) -> tuple[str, ...]:
    found = []
    if not law.converged:
        found.append("the frontier's fit did not converge: do not use it")
    if z.size < 5:
        found.append(f"{z.size} budgets for a law of 4 parameters: weak opinions fill in, the interval is wide")
    if (np.diff(z) > 0).any():
        found.append("a larger budget did worse than a smaller one: more seeds or a better learning rate are needed")
    if doubtful := doubt(law.backtests.coverage, law.backtests.level):
        found.append(doubtful)
    return tuple(found)
