"""Of the runs and variants of a size-data law, those that predicted best: windows, repeats, the size of the last rung,
and the forecast of the frontier in which the laws are candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.laws.backtest import rungs
from isoflop.laws.curve import FLOOR, KNOTS, ORIGINS, POWERS, SHRUNK, TABULATED, Candidate, CurveLaw, forecast
from isoflop.laws.size_data_fit import (
    FRESH,
    HURTING,
    SATURATING,
    Fit,
    Points,
    best_sizes,
    fit_thetas,
    loss_of,
    natural_units,
)
from isoflop.laws.solve import Array

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
    best = _best_of_budget(z, rung)
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


def _backtest(
    points: Points, rung: NDArray[np.intp], kept: NDArray[np.bool_], variant: str = FRESH
) -> tuple[Errors, dict[int, Fit]]:
    """Rolling origins over compute: from every lower part of the ladder, predict the best run of each later rung."""
    x, y, z = points.x, points.y, points.z
    errors, fits, top = Errors(), dict[int, Fit](), int(rung.max())
    best = np.array([np.flatnonzero(rung == r)[np.argmin(z[rung == r])] for r in range(top + 1)])
    for origin in range(max(1, top - ORIGINS), top):
        past = (rung <= origin) & kept
        if past.sum() < 6 or np.ptp(x[past]) < 0.3 or np.ptp(y[past]) < 0.3:
            continue
        fit = fits[origin] = fit_thetas(points[past], 5, variant)
        at = best[origin + 1 :]
        predicted = fit.at(x[at], y[at], points.u[at])
        errors |= {(origin, int(rung[k])): float(e) for k, e in zip(at, z[at] - predicted, strict=True)}
    return errors, fits


@dataclass(frozen=True)
class Tested:
    """A variant fitted to all points and at every origin, the errors there, and its weight among the variants."""

    name: str
    fit: Fit
    fits: dict[int, Fit]
    errors: Errors
    weight: float


PRIOR_VARIANTS = {FRESH: 1.0, SATURATING: 2.0, HURTING: 1.0}


NEAR, MANY = 1.12, 30
"""Where that leaves so many runs, the forms with repeats are also fitted to those within this factor of the best loss
of their budget: hundreds of epochs say little about the best runs."""


def choose_variants(points: Points, rung: NDArray[np.intp]) -> tuple[str, list[Tested]]:
    """The window, and the forms with and without repeats that were fitted to it: all runs, unless those near the best
    of their budget predict it better by a third."""
    everything = weigh_variants(points, rung, np.ones(points.z.size, dtype=bool))
    kept = points.z - _best_of_budget(points.z, rung) <= np.log(NEAR)
    if kept.sum() < MANY or kept.all() or not points[kept].repeated:
        return "all runs", everything
    near = weigh_variants(points, rung, kept)
    common = set(near[0].errors) & set(everything[0].errors)
    square = [sum(found[0].errors[k] ** 2 for k in common) for found in (near, everything)]
    if len(common) >= 3 and square[0] < 0.67**2 * square[1]:
        return f"runs within a factor of {NEAR:g} of the best of their budget", near
    return "all runs", everything


def _best_of_budget(z: Array, rung: NDArray[np.intp]) -> Array:
    return np.array([z[rung == r].min() for r in range(int(rung.max()) + 1)])[rung]


def weigh_variants(points: Points, rung: NDArray[np.intp], kept: NDArray[np.bool_]) -> list[Tested]:
    """The forms with and without repeats, heaviest first.

    A weight is prior × (relative squared error)^-power of two kinds of errors: of all later runs at the rolling
    origins, relative to noise and distance as in `curve`; and of the runs fitted, with a penalty for parameters.
    """
    names = (FRESH, SATURATING, HURTING)
    fits = {name: fit_thetas(points[kept], variant=name) for name in names}
    tests = {name: _backtest(points, rung, kept, name) for name in names}
    points, rung = points[kept], rung[kept]
    t = points.x + points.y
    noise = min(fit.noise for fit in fits.values())
    slope = abs(float(np.polyfit(t, points.z, 1)[0]))
    square = {}
    for name, (_, past) in tests.items():
        square[name] = np.array([
            np.average(
                (points.z - fit.at(points.x, points.y, points.u))[rung > o] ** 2
                / ((slope * (t[rung > o] - t[rung <= o].max())) ** 2 + noise**2),
                weights=points.weight[rung > o],
            )
            for o, fit in past.items() if rung.max() > o
        ])  # fmt: skip
    rows, count = points.rows, len(square[FRESH])
    usual = float(np.median(np.concatenate(list(square.values())))) if count else 1.0
    power = min(POWERS[0] + POWERS[1] * count, POWERS[2])
    weights = {}
    for name in names:
        relative = ((square[name].sum() + SHRUNK * usual) / (count + SHRUNK) + FLOOR) / (usual + FLOOR)
        inside = (fits[name].noise / noise) ** 2 * (1.0 + 2.0 * fits[name].theta.size / rows)
        weights[name] = PRIOR_VARIANTS[name] * relative**-power * inside ** -min(rows / 4.0, 8.0)
    total = sum(weights.values())
    found = [Tested(n, fits[n], tests[n][1], tests[n][0], float(weights[n] / total)) for n in names]
    return sorted(found, key=lambda v: -v.weight)


def budget_of(x: Array, y: Array) -> NDArray[np.intp]:
    """The rung of each run; where runs share no budgets, bins of compute by a factor of 2."""
    rung = rungs(np.exp(x + y))
    if np.median(np.bincount(rung)) >= 3 or rung.max() < 2:
        return rung
    return np.unique(np.floor((x + y - (x + y).max() - 1e-9) / np.log(2.0)), return_inverse=True)[1].astype(np.intp)


def frontier_forecast(
    points: Points, rung: NDArray[np.intp], variants: Sequence[Tested], unique: float | None
) -> CurveLaw | None:
    """The forecast of the best loss at a budget with `unique` different images, with these laws among the candidates;
    None for one budget."""
    if rung.max() < 1:
        return None
    fit = variants[0].fit
    t, z = points.x + points.y, points.z
    code = np.unique(np.round(points.x, 4) + 1j * np.round(points.y, 3), return_inverse=True)[1]
    if variants[0].fit.variant != FRESH:
        code = np.unique(code + 1j * np.round(points.u, 3), return_inverse=True)[1]
    z = (np.bincount(code, z) / np.bincount(code))[code]  # repeats of a run are one
    best = [int(np.flatnonzero(rung == r)[np.argmin(z[rung == r])]) for r in range(int(rung.max()) + 1)]
    if np.ptp(z[best]) < 1e-9:
        return None
    # The best run of a budget is not of the best size: subtract the difference, as the law gives it.
    t, z, log_n, log_u = t[best], z[best], points.x[best], points.u[best]
    row = natural_units(fit.theta[None], fit)
    low, high = np.exp(points.x.min()), np.exp(points.x.max())
    optimum = best_sizes(row, np.exp(t), unique, low, np.full(t.size, high))[0]
    at = np.log(loss_of(row, np.exp(log_n), np.exp(t - log_n), np.exp(log_u)))[0]
    least = np.log(loss_of(row, optimum, np.exp(t) / optimum, unique))[0]
    step = float(np.sqrt(np.mean(np.diff(z) ** 2)))
    clean = min(CLEAN * step / fit.noise, 100.0) ** 2
    trust = clean**2 / (1.0 + clean)
    z = z - min(trust, 1.0) * np.maximum(at - least, 0.0)
    ends = float(t[-1])

    def frontier(fit: Fit, last: int) -> tuple[Array, Array]:
        """The law along its optimum as a candidate in t = log(C / the largest): as it is, and through budget `last`.
        Without repeats it is E + K·C^-γ."""
        row = natural_units(fit.theta[None], fit)
        if fit.variant != FRESH and unique is not None:
            at = np.exp(KNOTS + ends)
            n = best_sizes(row, at, unique, low * 1e-3, np.full(at.size, high) * np.maximum(np.exp(KNOTS), 1.0))
            values = np.log(loss_of(row, n, at / n, unique))[0]
            return values, values + z[last] - np.interp(t[last] - ends, KNOTS, values)
        e, a, b, alpha, beta = row[0, :5]
        gamma = alpha * beta / (alpha + beta)
        log_n = _log_optimum(a, b, alpha, beta, t[-1])
        log_k = float(
            np.logaddexp(np.log(max(a, 1e-300)) - alpha * log_n, np.log(max(b, 1e-300)) - beta * (t[-1] - log_n))
        )
        at_last = float(np.log(e + np.exp(log_k - gamma * (t[last] - t[-1]))))
        moved = z[last] - at_last
        return np.array([log_k, gamma, e]), np.array([log_k + moved, gamma, e * np.exp(moved)])

    first, more = 1 + max(0, len(t) - 2 - ORIGINS), list[Candidate]()
    for variant in variants:
        now, past = frontier(variant.fit, -1), {o: frontier(f, o) for o, f in variant.fits.items()}
        form = "offset" if variant.name == FRESH or unique is None else TABULATED
        share = trust * variant.weight * len(variants)
        more += [
            Candidate(
                name, form, float(t[0] - t[-1]), now[k], {o - first: p[k] for o, p in past.items() if o >= first}, share
            )
            for k, name in enumerate((SIZE_DATA, FROM_LAST))
        ]
    return forecast(np.exp(t), np.exp(z), more, noise=fit.noise)


def _log_optimum(a: float, b: float, alpha: float, beta: float, log_compute: ArrayLike) -> Array:
    """Log of the size that makes A·n^-α + B·(C/n)^-β smallest."""
    ratio = np.log(max(alpha * a, 1e-300)) - np.log(max(beta * b, 1e-300))
    return np.asarray((ratio + beta * np.asarray(log_compute)) / (alpha + beta))


def last_size(
    points: Points, rung: NDArray[np.intp], fits: Mapping[int, Fit], unique: float | None
) -> tuple[float, float]:
    """The size that was best at the last rung, and how much it counts beside the law's optimum for the next rungs: by
    the regret of both at the rolling origins, four times as likely where there is none."""

    def at_best(r: int) -> float:
        here: NDArray[np.intp] = np.flatnonzero(rung == r)
        return float(points.x[here][np.argmin(points.z[here])])

    regrets = []
    for origin, fit in fits.items():
        row = natural_units(fit.theta[None], fit)
        for later in range(origin + 1, int(rung.max()) + 1):
            here = np.flatnonzero(rung == later)
            x, z = points.x[here], points.z[here]
            budget, high = np.exp(np.mean((points.x + points.y)[here])), np.exp(points.x.max())
            best = np.log(best_sizes(row, budget[None], unique, np.exp(points.x.min()), high[None])[0, 0])
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
