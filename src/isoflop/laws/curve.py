"""Extrapolation of one curve: error or loss against images, compute or size, by a mixture of forms and windows.

No single form is best on all real curves, and the best fit is often not the best prediction. Every form is fitted to
several windows that end at the last point. Each such member is backtested at rolling origins inside the data, and its
weight in the mixture decreases with its backtest error.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
"""Form → windows: the member sees the points within this factor of the last one."""
DAMPED_SHARE = 0.85
"""Prior weight of the damped members together: on short horizons the best single opinion, see `forms.DAMPING`."""
HELD_BACK = (0.26, 0.47, 0.74)
"""Rolling origins: log of the factor of x that is held back (1.3, 1.6, 2.1) where the curve is dense."""


@dataclass(frozen=True)
class EnsembleMember(JsonRecord):
    """One fitted form: `theta` in t = log(x / scale), fitted to x >= `since`, with its vote and its backtest RMSE."""

    form: str
    since: float
    theta: tuple[float, ...]
    weight: float
    backtest: float | None


@dataclass(frozen=True)
class CurveLaw(JsonRecord):
    """A curve's mixture of laws and its doubts.

    Attributes:
        scale: x of the last point; t = log(x / scale).
        members: what was fitted, heaviest vote first.
        noise: standard deviation of log y of a single measurement.
        drift: root mean square backtest error of the mixture per unit of log distance, noise taken off.
        freedom: degrees of freedom behind the drift.
        smoothed: whether the points look like averages of raw measurements (no rise where noise should give some);
            `noise` is then that of a raw measurement.
        backtest_coverage: share of backtest points that the interval of that time held, None without backtests.
        x_range, points: what was fitted. warnings: what a reader should know.
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

    def predict(self, x: ArrayLike) -> Array:
        """The mixture's y at x: the weighted geometric mean of its members, of those whose window reaches back to x."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self._moments(x)[0]))

    def interval(self, x: ArrayLike, level: float = LEVEL) -> tuple[Array, Array]:
        """(lo, hi) in which one more measurement at x should fall with probability `level`."""
        mean, deviation = self._moments(x)
        half = float(student(self.freedom, 0.5 + level / 2)) * deviation
        return np.exp(mean - half), np.exp(mean + half)

    def _moments(self, x: ArrayLike) -> tuple[Array, Array]:
        t = np.log(np.asarray(x, dtype=np.float64)) - np.log(self.scale)
        flat = t.reshape(-1)
        # A form that was fitted to the end of the curve knows nothing of its beginning.
        since = np.log([m.since for m in self.members]) - np.log(self.scale)
        mean, votes = np.zeros_like(flat), np.zeros_like(flat)
        for member, first in zip(self.members, since, strict=True):
            heard = first <= np.maximum(flat, since.min()) + 1e-9
            with np.errstate(all="ignore"):  # far before the first point, forms may run to infinity
                said = FORMS[member.form].evaluate(np.array([member.theta]), flat)[0][0]
            mean += np.where(heard, member.weight * said, 0.0)
            votes += np.where(heard, member.weight, 0.0)
        mean /= votes
        beyond = np.maximum(flat, 0.0)
        deviation = np.sqrt(self.noise**2 + (self.drift * beyond) ** 2)
        return mean.reshape(t.shape), deviation.reshape(t.shape)


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
    members, backtests = _members(t, z, origins)
    if not members:
        raise LawError(
            f"no law fits these {t.size} points at {np.unique(t).size} different x: several x apart are needed, "
            "or several curves are mixed in one"
        )
    scatter = scatter_of_neighbours(t, z)
    weights = _weights(members, backtests, max(0.01, 3.0 * scatter))
    drift, freedom, coverage = _drift(weights, backtests, t, z, origins, scatter)
    order = np.argsort(-weights, kind="stable")
    rms = [float(np.sqrt(np.mean([np.mean(e**2) for e in backtests[k]]))) if backtests[k] else None for k in order]
    kept = tuple(
        EnsembleMember(
            members[k][0], float(scale * np.exp(members[k][1])), tuple(members[k][2].tolist()), float(weights[k]), r
        )
        for k, r in zip(order, rms, strict=True)
        if weights[k] > 1e-6
    )
    total = float(sum(m.weight for m in kept))
    kept = tuple(EnsembleMember(m.form, m.since, m.theta, m.weight / total, m.backtest) for m in kept)
    span = (float(scale * np.exp(t[0])), scale)
    return CurveLaw(
        scale, kept, noise, drift, freedom, smoothed, coverage, span, points, _warnings(t, z, smoothed, coverage)
    )


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
        return tuple(float(w[-1]) for w in wanted if w.size >= 8)
    return tuple(float(distinct[-1 - k]) for k in (1, 2, 3) if distinct.size - k >= 4)


Backtest = list[NDArray[np.float64]]


def _members(t: Array, z: Array, origins: tuple[float, ...]) -> tuple[list[tuple[str, float, Array]], list[Backtest]]:
    """Every form on every window, at the end and at each origin: (form, first t seen, theta) and its backtest errors.

    A form's fits differ in weights (which points are seen) and starts alone, so they run as one batch.
    """
    members: list[tuple[str, float, Array]] = []
    backtests: list[Backtest] = []
    delta = max(1.345 * scatter_of_neighbours(t, z), 0.002)
    ends = (0.0, *origins)
    for name, windows in WINDOWS.items():
        form = FORMS[name]
        jobs: list[tuple[int, int, Array]] = []  # window, end, mask
        for w, window in enumerate(windows):
            for e, end in enumerate(ends):
                seen = (t <= end + 1e-12) & (t >= end - np.log(window) - 1e-12)
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
        for w, window in enumerate(windows):
            count = int((t >= -np.log(window) - 1e-12).sum())
            if (w, 0) not in theta or count in seen_at_end:  # a wider window with no more points is no other opinion
                continue
            seen_at_end.add(count)
            errors = []
            for e, end in enumerate(origins, start=1):
                if (w, e) in theta:
                    later = t > end + 1e-12
                    errors.append(form.evaluate(theta[w, e][None], t[later])[0][0] - z[later])
            first = max(-float(np.log(window)), float(t[0]))
            members.append((name, first, theta[w, 0]))
            # A member that could not be backtested everywhere has no say beside those that were.
            backtests.append(errors if len(errors) == len(origins) else [])
    return members, backtests


def _weights(members: list[tuple[str, float, Array]], backtests: list[Backtest], floor: float) -> Array:
    """Prior times (mean squared backtest error + floor²)^-2: errors below the floor are luck."""
    damped = np.array([name == "damped" for name, _, _ in members])
    prior = np.where(damped, DAMPED_SHARE / max(damped.sum(), 1), (1 - DAMPED_SHARE) / max((~damped).sum(), 1))
    if not any(backtests):
        # No backtest: the simplest forms share the vote.
        prior = prior * np.array([len(theta) <= 3 for _, _, theta in members])
        return np.asarray(prior / prior.sum())
    square = np.array([np.mean([np.mean(e**2) for e in errors]) if errors else np.inf for errors in backtests])
    weights = prior * (square + floor**2) ** -2.0
    return np.asarray(weights / weights.sum())


def _drift(
    weights: Array, backtests: list[Backtest], t: Array, z: Array, origins: tuple[float, ...], scatter: float
) -> tuple[float, float, float | None]:
    """Backtest error of the mixture per unit of log distance, its degrees of freedom, and coverage of the intervals."""
    voting = [k for k in range(len(weights)) if backtests[k]]
    if not voting:
        return 0.08, 3.0, None
    vote = weights[voting] / weights[voting].sum()
    squares, errors, distances = [], [], []
    for o, end in enumerate(origins):
        distance = np.maximum(t[t > end + 1e-12] - end, 0.1)
        error = sum(v * backtests[k][o] for v, k in zip(vote, voting, strict=True))
        squares.append(max(float(np.mean(np.asarray(error) ** 2)) - scatter**2, 0.0) / float(np.mean(distance**2)))
        errors.append(np.asarray(error))
        distances.append(distance)
    # Three origins of one curve are few: a weak opinion (2 % per e-fold counts as one more; 3 % as two where points
    # are few as well) keeps a lucky streak from looking like certainty.
    dense = t.size >= DENSE
    weight, opinion = (1.0, 0.02) if dense else (2.0, 0.03)
    drift = float(np.sqrt((np.sum(squares) + weight * opinion**2) / (len(squares) + weight)))
    freedom = 30.0 if dense else 2.0 + len(squares)
    half = float(student(freedom, 0.95))
    inside = [
        np.abs(e)
        <= half * np.sqrt(scatter**2 + (np.sum(squares) - s + weight * opinion**2) / (len(squares) - 1 + weight) * d**2)
        for e, d, s in zip(errors, distances, squares, strict=True)
    ]
    return drift, freedom, float(np.mean(np.concatenate(inside)))


def _warnings(t: Array, z: Array, smoothed: bool, coverage: float | None) -> tuple[str, ...]:
    found = []
    if smoothed:
        found.append("the points look smoothed: the interval is for a raw measurement, whose noise was inferred")
    if doubtful := doubt(coverage, LEVEL):
        found.append(doubtful)
    if z[-1] > z[0]:
        found.append("y rises with x: a falling law cannot describe this curve")
    return tuple(found)
