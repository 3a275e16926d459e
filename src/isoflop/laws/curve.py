"""The forecaster: a curve's or a frontier's continuation, by a mixture of candidates weighted by their backtests.

No single form is best on all real curves, and the best fit is often not the best prediction. The candidates are forms
fitted to several windows that end at the last point, and simple rules (the constant ratio of the last two points, the
slope of the last three). Each is backtested at rolling origins inside the data: its weight is a prior, learnt from
public tables, times a power of its backtest error. Curves, frontiers and laws of size and data use this one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.backtest import doubt, student
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.forms import FORMS
from isoflop.laws.solve import Array, minimise

# How noisy the points of a curve are, read off neighbours; whether they were smoothed; thinning where they abound.


DENSE = 20
"""A curve with as many different x shows its noise, and is backtested by distance instead of point by point."""
MOST = 200
"""More points than about this are averaged: a log of every step says no more about the law, and takes minutes."""


def thinned(t: Array, z: Array) -> tuple[Array, Array]:
    """Averages of equally many neighbours where there are more than `MOST` points, of fewer where those lie far apart.

    Args:
        t, z: logs of x and y, sorted by t, (m,). The last point's t stays the last.
    """
    if t.size <= MOST:
        return t, z
    neighbours, near = np.arange(t.size) * MOST // t.size, np.floor(t / 0.1)
    _, cell, count = np.unique(neighbours + 1j * near, return_inverse=True, return_counts=True)
    middle, level = np.bincount(cell, t) / count, np.bincount(cell, z) / count
    order = np.argsort(middle, kind="stable")
    return np.append(middle[order][:-1], t[-1]), level[order]


def scatter_of_neighbours(t: Array, z: Array) -> float:
    """Standard deviation of neighbouring points about their local line: noise as the table shows it."""
    recent = t >= -np.log(10.0)
    if np.unique(t[recent]).size >= DENSE:  # early points are steeper and fewer in a bin
        t, z = t[recent], z[recent]
    unique, index = np.unique(t, return_inverse=True)
    if unique.size < 6:
        return 0.01
    level = np.bincount(index, z) / np.bincount(index)
    left, right = np.diff(unique)[:-1], np.diff(unique)[1:]
    middle = (right * level[:-2] + left * level[2:]) / (left + right)
    spread = 1.0 + (right**2 + left**2) / (left + right) ** 2
    deviation = (level[1:-1] - middle) / np.sqrt(spread)
    # A handful of points may lie on a line by luck: do not believe in less than 0.3 % there.
    return max(float(np.sqrt(np.mean(deviation**2))), 1e-5 if unique.size >= DENSE else 3e-3)


def measurement_noise(t: Array, z: Array, scatter: float) -> tuple[float, bool]:
    """Noise of one raw measurement, and whether the table holds smoothed values.

    Published curves are often medians of ever wider bins made monotone. Tell-tale: no rise between neighbours though
    scatter and slope together should give some. A bin k times the narrowest one then averages k measurements.
    """
    if t.size < DENSE or np.unique(t).size < t.size:
        return scatter, False
    smooth = np.polyval(np.polyfit(t, z, 4), t)
    residual = z[t > -1.4] - np.polyval(np.polyfit(t[t > -1.4], z[t > -1.4], 2), t[t > -1.4])
    wide = float(np.sqrt((residual**2).sum() / max(residual.size - 3, 1)))
    step = np.abs(np.diff(smooth))
    from scipy.special import ndtr  # 0.2 s to import: not before it is needed

    expected = float(ndtr(-step / (np.sqrt(2.0) * wide)).sum())
    rises = int((np.diff(z) > 0).sum())
    if expected < 2.0:  # too smooth to tell: half of what smoothing may hide is added
        return 1.5 * scatter, False
    if rises > 0.1 * expected:
        return scatter, False
    width = np.diff(np.exp(t))
    per_bin = min(float(np.median(width[-5:]) / width.min()), 100.0)
    return 1.15 * scatter * float(np.sqrt(per_bin)), True


LEVEL = 0.9
WINDOWS: dict[str, tuple[float, ...]] = {
    "damped": (2.0, 3.0, 4.0, 6.0, 10.0),
    "power": (4.0, 10.0, np.inf),
    "offset": (4.0, 10.0, np.inf),
    "m3": (4.0, 10.0, np.inf),
    "double": (4.0, 10.0, np.inf),
    "m4": (4.0, 10.0, np.inf),
    "broken": (10.0, np.inf),
}
"""Forms of a curve → windows: the member sees the points within this factor of the last one."""
TABULATED = "the law with repeats"
"""A member that is no form of its own: `theta` is its log y at `KNOTS`."""
KNOTS = np.linspace(-16.0, 12.0, 141)
LADDER: dict[str, tuple[float, ...]] = {"offset": (np.inf,), "double": (np.inf,)}
"""The same of a frontier: a few best runs, one a budget."""
RATIO, HALF, RECENT = "constant ratio of the last two", "half that ratio", "slope of the last three"
PRIOR: dict[str, float] = {RATIO: 4.0, RECENT: 1.0, "offset": 1.0, "double": 1.0, "size and data": 2.0,
                           "size and data, from the last rung": 4.0}  # fmt: skip
"""Prior weights of the candidates of a frontier: of three rungs the constant ratio is hard to beat on public tables."""
CURVE_PRIOR: dict[str, float] = {"damped": 2.0, RATIO: 1.0, HALF: 1.0, "offset": 1.0, "m3": 0.5, "double": 0.5,
                                 "m4": 0.5, "broken": 0.5, "power": 0.25}  # fmt: skip
"""Those of a curve, whose slope decays more often than not."""
FLOOR = 1e-3
"""A weight is proportional to (relative squared backtest error + FLOOR)^-power: below the floor errors are luck."""
POWERS = (1.0, 0.5, 4.0)
"""The power without a backtest, what each origin adds to it, and the most: much evidence decides more."""
SHRUNK = 0.5
"""Backtests by which a candidate's error is shrunk towards that of all candidates."""
SCALE = {"slope": 0.005, "spread": 1.0, "backtest": 0.03}
"""Variances beyond those of noise and backtests, as shares of slope² and of the disagreement of the members; and the
opinion about a backtest: fitted to errors on public tables, the same within 40 % whichever source is left out."""
ORIGINS = 8
"""Backtests start from so many points at most, where points are few."""
FADING = 0.7
"""Log distance over which a member that did not see the beginning of a curve loses its vote there."""
COUNT = 4.0
"""Degrees of freedom of Student's quantiles before any backtest."""
WORTH = 1.5
"""Backtests that the opinion about the drift is worth."""
HELD_BACK = (0.26, 0.47, 0.74)
"""Rolling origins: log of the factor of x that is held back (1.3, 1.6, 2.1) where the curve is dense."""


@dataclass(frozen=True)
class EnsembleMember(JsonRecord):
    """One candidate: `form` with `theta` in t = log(x / scale), fitted to x >= `since`, its weight, its backtest RMSE.

    `name` is that of the form, or of the rule whose line `theta` is.
    """

    form: str
    since: float
    theta: tuple[float, ...]
    weight: float
    backtest: float | None
    name: str = ""


@dataclass(frozen=True)
class Candidate:
    """A member before it is weighted: `theta` at the end, and at each origin at which it could be fitted; its prior is
    multiplied by `trust`."""

    name: str
    form: str
    first: float
    theta: Array
    past: Mapping[int, Array]
    trust: float = 1.0

    def log_values(self, theta: Array, t: Array) -> Array:
        return _log_values(self.form, theta, t)


def _log_values(form: str, theta: Array, t: Array) -> Array:
    if form == TABULATED:
        return np.asarray(np.interp(t, KNOTS, theta))
    with np.errstate(all="ignore"):  # far before the first point, forms may run to infinity
        return np.asarray(FORMS[form].evaluate(theta[None], t)[0][0])


@dataclass(frozen=True)
class CurveLaw(JsonRecord):
    """A forecast: a mixture of candidates, and how far it may be off.

    Attributes:
        scale: x of the last point; t = log(x / scale).
        members: what was fitted, heaviest vote first.
        noise: standard deviation of log y of a single measurement.
        drift: standard deviation of log y per unit of log distance beyond the last point, by backtests and slope; the
            disagreement of the members is added to it.
        freedom: degrees of freedom behind the drift.
        smoothed: whether the points look like averages of raw measurements (no rise where noise should give some);
            `noise` is then that of a raw measurement.
        backtest_coverage: share of backtest points that the interval of that time held, None without backtests.
        x_range, points: what was fitted. warnings: what a reader should know.
        distances, errors: of the backtests of the mixture: log distance beyond what was seen, log(measured/predicted).
        budgets, best: of a frontier, its points.
    """

    scale: float
    members: tuple[EnsembleMember, ...]
    noise: float
    drift: float
    freedom: float
    smoothed: bool
    backtest_coverage: float | None
    x_range: tuple[float, float]
    points: int
    warnings: tuple[str, ...] = ()
    distances: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    budgets: tuple[float, ...] = ()
    best: tuple[float, ...] = ()

    def predict(self, x: ArrayLike) -> Array:
        """The mixture's y at x: the weighted geometric mean of its members, of those whose window reaches back to x."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.moments(x)[0]))

    def interval(self, x: ArrayLike, level: float = LEVEL) -> tuple[Array, Array]:
        """(lo, hi) in which one more measurement at x should fall with probability `level`."""
        mean, deviation = self.moments(x)
        half = float(student(self.freedom, 0.5 + level / 2)) * deviation
        return np.exp(mean - half), np.exp(mean + half)

    def moments(self, x: ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation of log y of one more measurement at x."""
        t = np.log(np.asarray(x, dtype=np.float64)) - np.log(self.scale)
        flat = t.reshape(-1)
        # A form that was fitted to the end of the curve knows nothing of its beginning: its vote fades out there.
        since = np.log([m.since for m in self.members]) - np.log(self.scale)
        values = np.zeros((len(self.members), flat.size))
        for k, member in enumerate(self.members):
            values[k] = _log_values(member.form, np.array(member.theta), flat)
        names = [m.name for m in self.members]
        fading = {RATIO: 4.0, HALF: 4.0, RECENT: 4.0}
        if any(name.startswith("size and data") for name in names):  # which is fitted to many more runs
            fading |= dict.fromkeys(LADDER, 2.0)
        power = np.array([fading.get(name, 0.0) for name in names])
        weights = np.array([m.weight for m in self.members])[:, None] * self.lasting(flat) ** power[:, None]
        mean, spread = _mixed(values, weights, since, flat)
        beyond = np.maximum(flat, 0.0)
        deviation = np.sqrt(
            self.noise**2 + (self.drift * beyond) ** 2 + SCALE["spread"] * np.where(beyond > 0, spread, 0.0)
        )
        return mean.reshape(t.shape), deviation.reshape(t.shape)

    def lasting(self, beyond: ArrayLike) -> Array:
        """1 as far beyond the data as they reach, then falling with log distance `beyond`. A power of it weighs what
        knows no floor, such as a constant ratio."""
        span = np.log(self.scale / self.x_range[0])
        return np.asarray(np.minimum(1.0, span / np.maximum(beyond, 1e-9)))

    def shift(self, compute: ArrayLike, own: Callable[[Array], Array]) -> Array:
        """What to add to the log loss of another law of the same runs, whose best at a budget is `own(budget)`, so
        that beyond the data it says what is forecast. Inside the data it fades out over an e-fold."""
        at = np.asarray(compute, dtype=np.float64)
        later = np.maximum(at, self.scale)
        inside = np.clip(1.0 - np.log(self.scale / np.minimum(at, self.scale)), 0.0, 1.0)
        return np.asarray(inside * (self.moments(later)[0] - np.log(own(later))))


def _mixed(values: Array, weights: Array, since: Array, t: Array) -> tuple[Array, Array]:
    """Mean and variance over members of their `values` (c, m) at t (m,), by `weights` (c, m); a member's vote fades out
    over the e-fold before the first point that it saw."""
    reach = np.clip(1.0 - (since[:, None] - np.maximum(t, since.min())) / FADING, 0.0, 1.0)
    votes = weights * reach
    votes = votes / votes.sum(axis=0)
    values = np.where(votes > 0, values, 0.0)
    mean = (votes * values).sum(axis=0)
    return mean, (votes * (values - mean) ** 2).sum(axis=0)


def fit_curve(x: ArrayLike, y: ArrayLike) -> CurveLaw:
    """The mixture of laws of one curve.

    Args:
        x: images, FLOPs, parameters …, positive, (m,), in any order. y: loss or error, positive, (m,).

    Raises:
        LawError: fewer than 4 different x, values not positive and finite, constant y, or points that no form
            can follow.
    """
    t, z, scale = _check(x, y)
    points = t.size
    noise, smoothed = measurement_noise(t, z, scatter_of_neighbours(t, z))
    t, z = thinned(t, z)
    origins = _origins(t)
    candidates = _fitted(t, z, origins, WINDOWS)
    if not candidates:
        raise LawError(
            f"no law fits these {t.size} points at {np.unique(t).size} different x: several x apart are needed, "
            "or several curves are mixed in one"
        )
    if np.unique(t).size < DENSE:
        candidates += _rules(t, z, origins, (RATIO, HALF))
    law = _mixture(t, z, scale, candidates, origins, CURVE_PRIOR, noise)
    return replace(law, smoothed=smoothed, points=points, warnings=_warnings(t, z, smoothed, law.backtest_coverage))


def forecast(compute: ArrayLike, loss: ArrayLike, more: Sequence[Candidate] = (), noise: float = 0.0) -> CurveLaw:
    """The continuation of a frontier, the best loss of each budget; from two budgets on.

    Args:
        compute, loss: positive, (m,), ascending in compute, each once. noise: of log loss, 0 if unknown.
        more: candidates of other laws, in t = log(compute / the largest), with `past` by number of budgets seen.
    """
    t, z = np.log(np.asarray(compute, dtype=np.float64)), np.log(np.asarray(loss, dtype=np.float64))
    scale, t = float(np.exp(t[-1])), t - t[-1]
    origins = tuple(float(v) for v in t[1:-1][-ORIGINS:])
    candidates = [*_rules(t, z, origins, (RATIO, RECENT)), *_fitted(t, z, origins, LADDER), *more]
    law = _mixture(t, z, scale, candidates, origins, PRIOR, noise or _ladder_noise(t, z))
    return replace(law, budgets=tuple((scale * np.exp(t)).tolist()), best=tuple(np.exp(z).tolist()))


def differences(first: CurveLaw, second: CurveLaw) -> list[tuple[int, float, float]]:
    """Backtests of the difference of two frontiers with common budgets, relative to distance: (origin, error of the
    forecasts, error of the last difference)."""
    count = len(first.budgets)
    if count != len(second.budgets) or np.abs(np.log(np.divide(first.budgets, second.budgets))).max() > 0.14:
        return []
    t, gap = np.log(first.budgets), np.log(np.divide(first.best, second.best))
    pairs = [(o, k) for o in range(max(1, count - 1 - ORIGINS), count - 1) for k in range(o + 1, count)]
    if not len(pairs) == len(first.errors) == len(second.errors):
        return []
    return [
        (o, (a - b) / (t[k] - t[o]), (gap[k] - gap[o]) / (t[k] - t[o]))
        for (o, k), a, b in zip(pairs, first.errors, second.errors, strict=True)
    ]


def _ladder_noise(t: Array, z: Array) -> float:
    """Noise of a frontier's points: their second differences, with a tenth of the mean step as an opinion worth two."""
    step = 0.1 * float(np.sqrt(np.mean(np.diff(z) ** 2)))
    if t.size < 4:
        return max(step, 1e-5)
    left, right = np.diff(t)[:-1], np.diff(t)[1:]
    deviation = (z[1:-1] - (right * z[:-2] + left * z[2:]) / (left + right)) / np.sqrt(
        1.0 + (right**2 + left**2) / (left + right) ** 2
    )
    bend = np.polyval(np.polyfit(t[1:-1], deviation, 1), t[1:-1]) if t.size >= 6 else deviation.mean()
    square = float(((deviation - bend) ** 2).sum())
    return max(float(np.sqrt((square + 2.0 * step**2) / (max(t.size - 4, 0) + 2.0))), 1e-5)


def _check(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, float]:
    a, b = positive_columns(x=x, y=y)
    if np.unique(a).size < 4:
        raise LawError(f"a curve needs at least 4 different x, not {np.unique(a).size}")
    if np.ptp(np.log(b)) < 1e-9:
        raise LawError("y is the same everywhere: there is nothing to fit")
    order = np.lexsort((b, a))
    return np.log(a[order] / a.max()), np.log(b[order]), float(a.max())


def _origins(t: Array) -> tuple[float, ...]:
    """The t of the last point that each backtest may see; dense curves by distance, sparse ones by point."""
    distinct = np.unique(t)
    if distinct.size >= DENSE:
        wanted = [distinct[distinct <= -h + 1e-9] for h in HELD_BACK]
        return tuple(sorted({float(w[-1]) for w in wanted if w.size >= 8}))
    return tuple(float(v) for v in distinct[2:-1][-ORIGINS:])


def _rules(t: Array, z: Array, origins: Sequence[float], names: Sequence[str]) -> list[Candidate]:
    """The simple rules as lines through the last point, log y = level - slope·t."""
    distinct, index = np.unique(t, return_inverse=True)
    level = np.bincount(index, z) / np.bincount(index)
    found = []
    for name in names:
        theta = {}
        for o, end in enumerate((*origins, 0.0)):
            count = int((distinct <= end + 1e-12).sum())
            if count < (3 if name == RECENT else 2):
                continue
            here = slice(count - 3 if name == RECENT else count - 2, count)
            slope = float(np.polyfit(distinct[here], level[here], 1)[0]) * (0.5 if name == HALF else 1.0)
            theta[o] = np.array([level[count - 1] - slope * distinct[count - 1], -slope])
        if len(origins) in theta:
            first = float(distinct[-3 if name == RECENT else -2])
            found.append(Candidate(name, "power", first, theta.pop(len(origins)), theta))
    return found


def _fitted(t: Array, z: Array, origins: Sequence[float], windows: Mapping[str, tuple[float, ...]]) -> list[Candidate]:
    """Every form on every window, at the end and at each origin.

    A form's fits differ in weights (which points are seen) and starts alone, so they run as one batch.
    """
    found: list[Candidate] = []
    delta = max(1.345 * scatter_of_neighbours(t, z), 0.002)
    ends = (*origins, 0.0)
    for name, factors in windows.items():
        form = FORMS[name]
        jobs: list[tuple[int, int, Array]] = []  # window, end, mask
        for w, factor in enumerate(factors):
            for e, end in enumerate(ends):
                seen = (t <= end + 1e-12) & (t >= end - np.log(factor) - 1e-12)
                distinct = np.unique(t[seen]).size
                spare = 5 if t.size >= DENSE else 1
                if distinct >= max(form.minimum, len(form.parameters) + spare):
                    jobs.append((w, e, seen))
        if not jobs:
            continue
        lower, upper = form.box(t, z)
        starts, masks, job_of = [], [], []
        for j, (_, _, seen) in enumerate(jobs):
            here = form.starts(t[seen], z[seen])[:5]
            starts.append(here)
            masks.append(np.repeat(seen[None].astype(float), len(here), axis=0))
            job_of += [j] * len(here)
        solution = minimise(
            form.model(t), np.concatenate(starts), z, delta=delta, lower=lower, upper=upper,
            weights=np.concatenate(masks), iterations=60,
        )  # fmt: skip
        owner = np.array(job_of)
        best = [int(np.flatnonzero(owner == j)[np.argmin(solution.objective[owner == j])]) for j in range(len(jobs))]
        theta = {(w, e): solution.theta[best[j]] for j, (w, e, _) in enumerate(jobs)}
        seen_at_end: set[int] = set()
        for w, factor in enumerate(factors):
            count = int((t >= -np.log(factor) - 1e-12).sum())
            if (w, len(origins)) not in theta or count in seen_at_end:  # no more points is no other opinion
                continue
            seen_at_end.add(count)
            past = {e: theta[w, e] for e in range(len(origins)) if (w, e) in theta}
            found.append(Candidate(name, name, max(-float(np.log(factor)), float(t[0])), theta[w, len(origins)], past))
    return found


def _mixture(
    t: Array, z: Array, scale: float, candidates: Sequence[Candidate], origins: Sequence[float],
    opinions: Mapping[str, float], noise: float,
) -> CurveLaw:  # fmt: skip
    """The candidates weighted by prior and backtests, and the scale of their errors."""
    names = [c.name for c in candidates]
    prior = np.array([opinions[c.name] * c.trust / names.count(c.name) for c in candidates])
    errors = np.full((len(candidates), len(origins), t.size), np.nan)  # predicted - measured
    for c, candidate in enumerate(candidates):
        for o, theta in candidate.past.items():
            later = t > origins[o] + 1e-12
            errors[c, o, later] = candidate.log_values(theta, t[later]) - z[later]
    weights, drift = _weigh(errors, t, z, origins, prior, noise, float(t[-1]))
    freedom = COUNT + len(origins)
    distances, mixed, inside = _rolling(candidates, errors, t, z, origins, prior, noise)
    order = np.argsort(-weights, kind="stable")
    with np.errstate(all="ignore"):
        rms = [float(np.sqrt(np.nanmean(errors[k] ** 2))) if np.isfinite(errors[k]).any() else None for k in order]
    kept = [
        EnsembleMember(candidates[k].form, float(scale * np.exp(candidates[k].first)),
                       tuple(float(v) for v in candidates[k].theta), float(weights[k]), r, candidates[k].name)
        for k, r in zip(order, rms, strict=True) if weights[k] > 1e-6
    ]  # fmt: skip
    total = sum(m.weight for m in kept)
    return CurveLaw(
        scale, tuple(replace(m, weight=m.weight / total) for m in kept), noise, drift, freedom, False,
        float(np.mean(inside)) if inside else None, (float(scale * np.exp(t[0])), scale), t.size,
        distances=tuple(distances), errors=tuple(mixed),
    )  # fmt: skip


def _slope(t: Array, z: Array, end: float) -> float:
    """How fast log y falls per unit of t up to `end`: root mean square of the steps, of the last decade if dense."""
    seen = t <= end + 1e-12
    if np.unique(t[seen]).size >= DENSE:
        seen &= t >= end - np.log(10.0)
        return max(abs(float(np.polyfit(t[seen], z[seen], 1)[0])), 1e-6)
    distinct, index = np.unique(t[seen], return_inverse=True)
    level = np.bincount(index, z[seen]) / np.bincount(index)
    return max(float(np.sqrt(np.mean((np.diff(level) / np.diff(distinct)) ** 2))), 1e-6)


def _weigh(
    errors: Array, t: Array, z: Array, origins: Sequence[float], prior: Array, noise: float, end: float
) -> tuple[Array, float]:
    """Weights of the candidates (c,) and the drift, as the points up to `end` tell.

    Squared errors are relative to what the slope makes of the distance, so that far ones do not decide alone, and to
    the noise. Every origin has one vote.
    """
    slope, since = _slope(t, z, end), np.array(origins)
    seen = (since[:, None] < t - 1e-12) & (t <= end + 1e-12)
    distance = np.where(seen, t - since[:, None], np.nan)
    scale = (slope * distance) ** 2 + noise**2
    used = seen.any(axis=1)
    if not used.any():
        return prior / prior.sum(), float(np.sqrt(SCALE["backtest"])) * slope
    with np.errstate(all="ignore"):
        square = _mean((errors**2 / scale)[:, used], axis=2)  # (c, origins)
        known = ~np.isnan(square)
        usual = float(np.nanmedian(square))
        relative = (np.where(known, square, 0.0).sum(axis=1) + SHRUNK * usual) / (known.sum(axis=1) + SHRUNK)
        power = min(POWERS[0] + POWERS[1] * int(used.sum()), POWERS[2])
        weights = prior * ((relative + FLOOR) / (usual + FLOOR)) ** -power
    weights = np.where(np.isfinite(weights), weights, 0.0)
    weights = weights / weights.sum()
    mixed = _mixed_errors(errors, weights)
    excess = _mean(np.maximum(mixed**2 - noise**2, 0.0), axis=1) / _mean(distance**2, axis=1)
    excess = excess[used & np.isfinite(excess)]
    opinion = SCALE["backtest"] * slope**2
    drift = np.sqrt((excess.sum() + WORTH * opinion) / (excess.size + WORTH) + SCALE["slope"] * slope**2)
    return weights, float(drift)


def _mean(values: Array, axis: int) -> Array:
    """The mean of what is known, NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(all="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis))


def _mixed_errors(errors: Array, weights: Array) -> Array:
    """The errors (origins, m) of the mixture, of the candidates that were there."""
    there = np.isfinite(errors)
    votes = np.where(there, weights[:, None, None], 0.0)
    with np.errstate(all="ignore"):
        return np.asarray((votes * np.where(there, errors, 0.0)).sum(axis=0) / votes.sum(axis=0))


def _rolling(
    candidates: Sequence[Candidate], errors: Array, t: Array, z: Array, origins: Sequence[float], prior: Array,
    noise: float,
) -> tuple[list[float], list[float], list[bool]]:  # fmt: skip
    """The backtests of the mixture: distances, log(measured / predicted), and which the interval of that time held."""
    distances, mixed, inside = list[float](), list[float](), list[bool]()
    for o, end in enumerate(origins):
        later = t > end + 1e-12
        there = np.isfinite(errors[:, o][:, later]).all(axis=1)
        if not there.any():
            continue
        weights, drift = _weigh(errors, t, z, origins, np.where(there, prior, 0.0), noise, end)
        off, distance = errors[:, o][:, later][there], t[later] - end
        vote = weights[there, None]
        error = (vote * off).sum(axis=0)
        spread = (vote * (off - error) ** 2).sum(axis=0)
        half = float(student(COUNT + o, 0.5 + LEVEL / 2))
        deviation = np.sqrt(noise**2 + (drift * distance) ** 2 + SCALE["spread"] * spread)
        distances += distance.tolist()
        mixed += (-error).tolist()
        inside += (np.abs(error) <= half * deviation).tolist()
    return distances, mixed, inside


def _warnings(t: Array, z: Array, smoothed: bool, coverage: float | None) -> tuple[str, ...]:
    found = []
    if smoothed:
        found.append("the points look smoothed: the interval is for a raw measurement, whose noise was inferred")
    if doubtful := doubt(coverage, LEVEL):
        found.append(doubtful)
    if z[-1] > z[0]:
        found.append("y rises with x: a falling law cannot describe this curve")
    return tuple(found)
