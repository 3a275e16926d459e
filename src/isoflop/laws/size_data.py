"""Loss as a function of model size and images seen: L = E + A·n^-α + B·d^-β (arXiv 2203.15556, eq. 2).

n is *training* FLOPs per image (3 × forward), d images seen, so that n·d is the compute of the run. FLOPs stand for
parameters because the patch size of a vision model changes its compute and not its parameters.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, summarise
from isoflop.laws.records import Record
from isoflop.laws.size_data_fit import (
    Fit,
    bootstrap_thetas,
    check_table,
    choose_window,
    condition_number,
    edge_share,
    exponent_profiles,
    fit_thetas,
    natural_units,
    size_data_model,
    thinned,
)
from isoflop.laws.solve import Array

LEVEL = 0.9


@dataclass(frozen=True)
class SizeDataLaw(Record):
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
        found.append("size and data cannot be told apart well by these runs (ill-conditioned): exponents are guesses")
    if fit.theta[:2].min() < z.min() - 12:
        gone = "size" if fit.theta[0] < fit.theta[1] else "images"
        found.append(f"one of the two terms vanished: the table shows no effect of {gone}")
    if law.irreducible <= 0:
        found.append("no irreducible loss is visible yet: the law may fall too far beyond the ladder")
    edge = edge_share(x, y, z)
    if edge > 0.5:
        found.append(f"at {edge:.0%} of the budgets the best size is the smallest or largest tried: widen the sizes")
    if doubtful := doubt(law.backtests.coverage, law.backtests.level):
        found.append(doubtful)
    return tuple(found)
