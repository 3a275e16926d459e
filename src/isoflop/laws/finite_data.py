"""A law of size, images seen and *unique* images: repeats saturate, then increase the error; errors are below chance.

    q = A·n^-α + B·n^-γ·D^-β + H·n^λ·r^κ·U^-μ          excess over the irreducible error
    y = E + (T - E)·(1 + q^-k)^(-1/k)                   q where it is small, T (chance) where it is large

U unique images are seen R = d/U times. Up to one epoch every image counts, further ones saturate as in arXiv
2305.16264, D = U·(min(R, 1) + R*·(1 - exp(-(R - 1)/R*))). The third term models a measurement of arXiv 2106.04560:
repeated views, r = R - 1 + exp(-R), increase the error of large models on few images. Without a `unique` column the
third term and R* are omitted; without T, y = E + q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, summarise
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.solve import Array, Model, minimise, robust_scale

# The numerics of the finite-data form: its derivatives, starts, joint fit and rolling origins; see `finite_data`.


NAMES = ("log_a", "log_b", "e", "alpha", "beta", "gamma", "log_k", "log_r", "log_h", "lambda", "kappa", "mu")
LOWER = np.array([-9.0, -9.0, 0.0, 0.01, 0.01, -1.0, -1.2, -2.0, -20.0, 0.0, 0.1, 0.0])
UPPER = np.array([3.0, 3.0, 1.0, 2.5, 3.0, 1.5, 1.4, 9.0, 0.0, 2.5, 2.5, 2.5])
NO_REPEATS = {"log_r": 9.0, "log_h": -20.0, "lambda": 0.0, "kappa": 1.0, "mu": 0.0}
VARIANTS: dict[str, dict[str, float]] = {
    "additive": {"gamma": 0.0, "log_k": 0.0},
    "interacting": {"log_k": 0.0},
    "capped": {"gamma": 0.0},
    "capped interacting": {},
}
"""Name → the parameters it holds still; the capped ones need the error of chance T."""
HELD_BACK = (1.1, 1.6, 2.3)
"""Rolling origins: log of the factor of compute that is held back (3, 5, 10)."""


def held_parameters(variant: str, repeats: bool) -> tuple[int, ...]:
    """Which parameters a variant holds still."""
    held = {**VARIANTS[variant], **({} if repeats else NO_REPEATS)}
    return tuple(NAMES.index(name) for name in held)


def upper_bounds(z: Array, top: float | None) -> Array:
    """The upper end of the box (12,) for log errors z."""
    upper = UPPER.copy()
    upper[2] = float(np.exp(z.min())) * 0.999
    if top is None:
        upper[:2] = z.max() + 6.0
    return upper


def finite_data_model(x: Array, y: Array, u: Array, top: float | None, repeats: bool) -> Model:
    """log y of theta in the order of `NAMES`, with its derivatives, for centred logs of n, images seen and unique."""
    epochs = np.exp(y - u)
    extra = np.maximum(epochs - 1.0, 0.0)
    again = np.log(np.maximum(epochs - 1.0 + np.exp(-epochs), 1e-12))

    def evaluate(theta: Array) -> tuple[Array, Array]:
        log_a, log_b, e, alpha, beta, gamma, log_k, log_r, log_h, lam, kappa, mu = (
            theta[:, i, None] for i in range(12)
        )
        if repeats:
            limit = np.exp(log_r)
            left = np.exp(-extra / limit)
            log_d = u + np.log(np.minimum(epochs, 1.0) + limit * (1.0 - left))
            d_limit = limit * (1.0 - left - extra / limit * left) / (np.minimum(epochs, 1.0) + limit * (1.0 - left))
            hurt = np.exp(log_h + lam * x + kappa * again - mu * u)
        else:
            log_d, d_limit, hurt = np.broadcast_arrays(y, 0.0 * y, 0.0 * y)
        size = np.exp(log_a - alpha * x)
        data = np.exp(log_b - gamma * x - beta * log_d)
        q = size + data + hurt
        log_q = np.log(q)
        if top is None:
            share, span, g, d_k = q, np.ones_like(e), np.ones_like(q), np.zeros_like(q)
        else:
            k = np.exp(log_k)
            tail = np.logaddexp(0.0, -k * log_q)
            share, span = np.exp(-tail / k), top - e
            g = 1.0 / (1.0 + np.exp(np.clip(k * log_q, -700, 700)))
            d_k = tail / k + g * log_q  # times k: the derivative in log k
        value = e + span * share
        slope = span * share * g / q  # d value / d q
        parts = [
            slope * size, slope * data, 1.0 - (share if top is not None else 0.0), -x * slope * size,
            -log_d * slope * data, -x * slope * data, span * share * d_k, -beta * d_limit * slope * data,
            slope * hurt, x * slope * hurt, again * slope * hurt, -u * slope * hurt,
        ]  # fmt: skip
        return np.log(value), np.stack([np.broadcast_to(p, value.shape) for p in parts], axis=2) / value[:, :, None]

    return evaluate


def fit_finite_theta(
    columns: tuple[Array, Array, Array], z: Array, top: float | None, repeats: bool, variant: str, scan: int = 512
) -> tuple[Array, float, float, float, bool]:
    """theta, noise, Huber's delta, agreement of the starts, convergence. The scan of starts is always the same."""
    model, fixed, upper = (
        finite_data_model(*columns, top, repeats),
        held_parameters(variant, repeats),
        upper_bounds(z, top),
    )
    rng = np.random.default_rng(0)
    low = np.array([-5.0, -5.0, 0.0, 0.1, 0.1, -0.3, -0.5, 1.0, -10.0, 0.1, 0.3, 0.0])
    high = np.array([0.0, 0.0, 0.9 * upper[2], 0.9, 1.2, 0.6, 1.2, 7.0, -2.0, 1.2, 1.2, 1.0])
    starts = rng.uniform(low, high, (scan, 12))
    if top is None:
        starts[:, :2] += z.max()
    for name, value in {**VARIANTS[variant], **({} if repeats else NO_REPEATS)}.items():
        starts[:, NAMES.index(name)] = value
    with np.errstate(all="ignore"):
        misfit = np.abs(model(starts)[0] - z).sum(1)
    theta = starts[np.argsort(np.where(np.isfinite(misfit), misfit, np.inf), kind="stable")[:16]]
    delta, noise = 0.05, 0.0
    for round_ in range(5):
        solution = minimise(
            model, theta, z, delta=delta, lower=LOWER, upper=upper, fixed=fixed, iterations=60 if round_ else 150
        )
        order = np.argsort(solution.objective, kind="stable")
        theta = solution.theta[order]
        before = noise
        noise = max(robust_scale(z - model(theta[:1])[0][0], len(NAMES) - len(fixed)), 1e-6)
        delta = 1.345 * noise
        if abs(noise - before) <= 0.02 * noise:
            break
    spread = solution.objective[order] - solution.objective[order[0]]
    return theta[0], noise, delta, float(np.mean(spread <= 0.05 * noise**2)), bool(solution.converged[order[0]])


def backtest_finite_data(
    columns: tuple[Array, Array, Array], z: Array, top: float | None, repeats: bool, variant: str
) -> tuple[Array, Array, Array]:
    """Distances, errors and origins of predictions of the runs of most compute from the others."""
    compute = columns[0] + columns[1]
    parameters = len(NAMES) - len(held_parameters(variant, repeats))
    distances, errors, origins = [], [], []
    for k, held in enumerate(HELD_BACK):
        past = compute <= compute.max() - held
        if past.sum() < parameters + 3 or past.all():
            continue
        x, y, u = columns
        theta = fit_finite_theta((x[past], y[past], u[past]), z[past], top, repeats, variant, scan=256)[0]
        later = finite_data_model(x[~past], y[~past], u[~past], top, repeats)
        errors += (z[~past] - later(theta[None])[0][0]).tolist()
        distances += (compute[~past] - compute[past].max()).tolist()
        origins += [k] * int((~past).sum())
    return np.array(distances), np.array(errors), np.array(origins)


LEVEL = 0.9


@dataclass(frozen=True)
class FiniteDataLaw(JsonRecord):
    """A law of n (training FLOPs an image), images seen and unique images, with its doubts.

    Attributes:
        variant: which of `VARIANTS` was chosen; `choice`: variant → RMSE of log error at the rolling origins.
        theta: parameters in the order of `NAMES`, for n and d in units of `centre` and y in `unit`. top: T, or None.
        repeats: whether repeats of images are modelled.
        replicates: bootstrap thetas. noise, freedom: standard deviation of log y, degrees of freedom.
        agreement: share of starts that ended at the best fit. backtests: errors of the chosen variant.
        warnings: what a reader should know before trusting it.
    """

    variant: str
    choice: dict[str, float]
    theta: tuple[float, ...]
    top: float | None
    repeats: bool
    centre: tuple[float, float]
    replicates: tuple[tuple[float, ...], ...]
    noise: float
    freedom: float
    agreement: float
    converged: bool
    backtests: Backtests
    compute_range: tuple[float, float]
    residuals: tuple[float, ...]
    warnings: tuple[str, ...] = ()
    unit: float = 1.0

    def predict(self, n: ArrayLike, seen: ArrayLike, unique: ArrayLike | None = None) -> Array:
        """Error at n training FLOPs an image after `seen` images of which `unique` are different (None: all)."""
        law = self._log(np.array([self.theta]), n, seen, unique)[0]
        return np.asarray(np.exp(law + self.backtests.correction(self._beyond(n, seen))))

    def _beyond(self, n: ArrayLike, seen: ArrayLike) -> Array:
        compute = np.asarray(n, dtype=np.float64) * np.asarray(seen, dtype=np.float64)
        return np.asarray(np.maximum(np.log(compute / self.compute_range[1]), 0.0))

    def interval(
        self, n: ArrayLike, seen: ArrayLike, unique: ArrayLike | None = None, level: float = LEVEL
    ) -> tuple[Array, Array]:
        """(lo, hi) in which one more measurement should fall with probability `level`."""
        mean = self._log(np.array(self.replicates), n, seen, unique)
        beyond = self._beyond(n, seen)
        mean = mean + self.backtests.correction(beyond)
        deviation = np.sqrt(self.noise**2 + (self.backtests.drift * beyond) ** 2)
        draws = np.exp(predictive(mean, deviation, min(self.freedom, self.backtests.freedom)))
        lo, hi = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return lo, hi

    def best_duration(self, n: float, unique: float, limit: float) -> float:
        """Images seen, up to `limit`, at which a model of n FLOPs an image on `unique` images is best."""
        seen = np.geomspace(unique / 100, limit, 2000)
        return float(seen[np.argmin(self.predict(n, seen, unique))])

    def _log(self, theta: Array, n: ArrayLike, seen: ArrayLike, unique: ArrayLike | None) -> Array:
        x, y = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(seen, dtype=np.float64))
        u = y if unique is None or not self.repeats else np.broadcast_to(np.asarray(unique, dtype=np.float64), x.shape)
        flat = [np.log(v.reshape(-1)) for v in (x, y, u)]
        columns = flat[0] - self.centre[0], flat[1] - self.centre[1], flat[2] - self.centre[1]
        value = finite_data_model(*columns, self.top, self.repeats)(theta)[0]
        return np.asarray(np.log(self.unit) + value.reshape(len(theta), *x.shape))


def fit_finite_data(
    n: ArrayLike,
    seen: ArrayLike,
    error: ArrayLike,
    unique: ArrayLike | None = None,
    *,
    top: float | None = None,
    variants: Sequence[str] | None = None,
    seed: int = 0,
    bootstrap: int = 100,
) -> FiniteDataLaw:
    """The finite-data law of a table; the variant is chosen by rolling-origin errors over compute inside the table.

    Args:
        n: training FLOPs per image, (m,). seen: images seen, (m,). error: error rate or loss, (m,).
        unique: different images available, (m,), None if never repeated. top: the error of chance (1 for a few-shot
            error of many classes), None for a loss without a ceiling. variants: which to try, all that apply if None.
        seed, bootstrap: of the replicates.

    Raises:
        LawError: values not positive and finite, errors at or above `top`, or fewer rows than parameters and 3.
    """
    x, y, u, z, centre = _check(n, seen, error, unique, top)
    unit = 1.0 if top is not None else float(np.exp(z.max()))  # the box of the parameters is of errors below 1
    z = z - np.log(unit)
    repeats = bool((y - u > 0.01).any())
    names = list(variants or [v for v in VARIANTS if top is not None or not v.startswith("capped")])
    wrong = [v for v in names if v not in VARIANTS or (top is None and v.startswith("capped"))]
    if wrong:
        raise LawError(
            f"no such variant here: {', '.join(wrong)}; there are {', '.join(VARIANTS)} (capped ones need `top`)"
        )
    columns = (x, y, u)
    chance = {name: top if name.startswith("capped") else None for name in names}
    tests = {name: backtest_finite_data(columns, z, chance[name], repeats, name) for name in names}
    choice = {name: float(np.sqrt(np.mean(t[1] ** 2))) if t[1].size else np.inf for name, t in tests.items()}
    name = min(names, key=lambda v: choice[v])
    top = chance[name]
    theta, noise, delta, agreement, converged = fit_finite_theta(columns, z, top, repeats, name)
    model = finite_data_model(*columns, top, repeats)
    fixed = held_parameters(name, repeats)
    residual = z - model(theta[None])[0][0]
    freedom = float(max(z.size - (len(NAMES) - len(fixed)), 1))
    rng = np.random.default_rng(seed)
    draws = model(theta[None])[0] + noise * rng.standard_normal((max(bootstrap, 1), z.size))
    replicates = theta[None] if bootstrap < 1 else minimise(
        model, np.repeat(theta[None], bootstrap, axis=0), draws, delta=delta, lower=LOWER, upper=upper_bounds(z, top),
        fixed=fixed, iterations=25,
    ).theta  # fmt: skip
    distances, errors, origins = tests[name]
    spreads = np.full(errors.size, noise)
    compute = np.exp(x + y + centre[0] + centre[1])
    backtests = summarise(distances, errors, spreads, origins, LEVEL)
    return FiniteDataLaw(
        name, choice, tuple(theta.tolist()), top, repeats, centre, tuple(tuple(r) for r in replicates.tolist()),
        noise, freedom, agreement, converged, backtests,
        (float(compute.min()), float(compute.max())), tuple(residual.tolist()),
        _warnings(converged, agreement, backtests, repeats, float(np.exp((y - u).max()))), unit,
    )  # fmt: skip


def _warnings(converged: bool, agreement: float, backtests: Backtests, repeats: bool, epochs: float) -> tuple[str, ...]:
    found = []
    if not converged:
        found.append("the fit did not converge: do not use it")
    if agreement < 0.3:
        found.append(f"only {agreement:.0%} of the starts agree on the best fit")
    if backtests.coverage is None:
        found.append("too few runs for a backtest: the variant is a guess, and so is the interval")
    elif doubtful := doubt(backtests.coverage, backtests.level):
        found.append(doubtful)
    if repeats and epochs < 4:
        found.append(
            f"images were repeated at most {epochs:.1f} times: what more repeats do is not known from this table"
        )
    return tuple(found)


def _check(
    n: ArrayLike, seen: ArrayLike, error: ArrayLike, unique: ArrayLike | None, top: float | None
) -> tuple[Array, Array, Array, Array, tuple[float, float]]:
    a, b, c, e = positive_columns(n=n, seen=seen, unique=seen if unique is None else unique, error=error)
    if top is not None and (e >= top).any():
        raise LawError(f"an error of {e.max():g} is not below chance ({top:g}): give another `top`")
    if a.size < 12:
        raise LawError(f"a finite-data law needs at least 12 rows, not {a.size}")
    x, y, u, z = np.log(a), np.log(b), np.log(c), np.log(e)
    centre = float(np.median(x)), float(np.median(y))
    return x - centre[0], y - centre[1], u - centre[1], z, centre
