"""Size, images seen and *unique* images apart: repeats saturate, then hurt; errors cannot exceed chance.

    q = A·n^-α + B·n^-γ·D^-β + H·n^λ·r^κ·U^-μ          what keeps the model from its best
    y = E + (T - E)·(1 + q^-k)^(-1/k)                   q where it is small, T (chance) where it is large

U unique images seen R = d/U times: up to one epoch every image counts, further ones saturate as in arXiv 2305.16264,
D = U·(min(R, 1) + R*·(1 - exp(-(R - 1)/R*))). The third term is what arXiv 2106.04560 measured and that law lacks:
r = R - 1 + exp(-R), the views of an image beyond its first, hurts large models on few images. Without a `unique`
column the third term and R* are left out; without T, y = E + q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, summarise
from isoflop.laws.checks import positive_columns
from isoflop.laws.finite_data_fit import (
    LOWER,
    NAMES,
    VARIANTS,
    backtest_finite_data,
    finite_data_model,
    fit_finite_theta,
    held_parameters,
    upper_bounds,
)
from isoflop.laws.records import Record
from isoflop.laws.solve import Array, minimise

LEVEL = 0.9


@dataclass(frozen=True)
class FiniteDataLaw(Record):
    """A law of n (training FLOPs an image), images seen and unique images, with its doubts.

    Attributes:
        variant: which of `VARIANTS` was chosen; `choice`: variant → RMSE of log error at the rolling origins.
        theta: parameters in the order of `NAMES`, for n and d in units of `centre`. top: T, or None.
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
        return np.asarray(value.reshape(len(theta), *x.shape))


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
        _warnings(converged, agreement, backtests, repeats, float(np.exp((y - u).max()))),
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
