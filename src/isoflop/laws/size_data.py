"""The Chinchilla law, loss as a function of size and images seen: L = E + A·n^-α + B·d^-β (arXiv 2203.15556, eq. 2).

n is *training* FLOPs per image (3 × forward), d images seen, so n·d is the compute of the run. FLOPs replace
parameters because the patch size of a vision model changes its compute and not its parameters.

Where runs saw images more than once, two forms with repeats stand beside it, those of `finite_data`: d becomes the
saturating number of effective images, and repeated views may increase the loss by H·n^λ·r^κ·U^-μ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.backtest import Backtests, doubt, predictive, summarise
from isoflop.laws.columns import JsonRecord
from isoflop.laws.curve import CurveLaw
from isoflop.laws.size_data_choice import (
    Tested,
    budget_of,
    choose_variants,
    choose_window,
    edge_share,
    frontier_forecast,
    last_size,
)
from isoflop.laws.size_data_fit import (
    FRESH,
    NO_HARM,
    UNSEEN,
    Fit,
    best_sizes,
    bootstrap_thetas,
    check_table,
    condition_number,
    exponent_profiles,
    fit_thetas,
    loss_of,
    natural_units,
    thinned,
)
from isoflop.laws.solve import Array

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
    ahead = frontier_forecast(points, rung, variants, there)
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
        last_size=last_size(points, rung, fits, there),
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
