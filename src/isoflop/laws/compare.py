"""The best family at a budget beyond the data: probabilities, regret, and the ranking at the largest budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.columns import JsonRecord, positive_columns
from isoflop.laws.curve import FLOOR, POWERS, SHRUNK, differences
from isoflop.laws.frontier import FrontierLaw, frontier_points
from isoflop.laws.size_data import SizeDataLaw, fit_size_data
from isoflop.laws.solve import Array

Table = tuple[ArrayLike, ArrayLike, ArrayLike]
DRAWS = 4000
REACH = 1e3
"""Crossovers are looked for up to this factor beyond the largest measured budget."""


@dataclass(frozen=True)
class Standing(JsonRecord):
    """How one family stands at the target: predicted loss, its interval, P(best), expected regret (loss given up)."""

    family: str
    loss: float
    interval: tuple[float, float]
    p_best: float
    regret: float


@dataclass(frozen=True)
class Crossover(JsonRecord):
    """Where `later` overtakes `earlier`: budget, interval of it, and the share of bootstrap pairs that cross so at all.

    `searched` is where it was looked for, from the smallest measured budget to `REACH` times the largest. A pair that
    does not cross there counts at the end where it would; so an end of the interval that is an end of `searched` is
    open: "before" or "beyond".
    """

    earlier: str
    later: str
    compute: float
    interval: tuple[float, float]
    probability: float
    searched: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison(JsonRecord):
    """Families at `compute`, best expected first.

    Attributes:
        standings: one per family, ascending in expected regret.
        best: the family of least expected regret.
        naive_best: the family with the lowest loss at the largest budget that all families were measured at.
        naive: family → its lowest loss there. naive_compute: that budget.
        crossovers: of every pair whose laws cross.
        level: of the intervals.
    """

    compute: float
    standings: tuple[Standing, ...]
    best: str
    naive_best: str
    naive: dict[str, float]
    naive_compute: float
    level: float
    warnings: tuple[str, ...] = ()
    crossovers: tuple[Crossover, ...] = ()


def compare(
    tables: Mapping[str, Table],
    compute: float,
    *,
    laws: Mapping[str, SizeDataLaw] | None = None,
    level: float = 0.9,
    seed: int = 0,
    bootstrap: int = 200,
) -> Comparison:
    """Families ranked at `compute` training FLOPs from their tables of (n, d, loss).

    Args:
        tables: family → (training FLOPs per image, images, loss). compute: the budget asked about.
        laws: family → its law if fitted already. level: of the intervals. seed, bootstrap: as in `fit_size_data`.

    Raises:
        LawError: no table, a budget that is not positive, or a table from which no law can be fitted.
    """
    if not tables:
        raise LawError("there is no family to compare")
    if not (np.isfinite(compute) and compute > 0):
        raise LawError(f"the budget must be positive FLOPs, not {compute}")
    fitted = {
        family: (laws or {}).get(family) or fit_size_data(*table, seed=seed, bootstrap=bootstrap)
        for family, table in tables.items()
    }
    naive, budget = naive_ranking(tables)
    rng = np.random.default_rng(0)
    predicted = {family: np.log(law.optimal(compute)[2]) for family, law in fitted.items()}
    kept = _ranking_kept(tuple(fitted.values())) * min(
        [
            float(law.forecast.lasting(np.log(compute / law.forecast.scale))) ** 4
            for law in fitted.values()
            if law.forecast
        ],
        default=1.0,
    )
    moved, middle = {}, np.mean([predicted[f] - np.log(naive[f]) for f in tables])
    draws = {}
    for family, law in fitted.items():
        n, d, _ = law.optimal(compute)
        apart = np.log(naive[family]) + middle - predicted[family]  # from what the last rung's ranking would say
        moved[family] = float(np.exp(predicted[family] + kept * apart))
        spread = np.sqrt(kept * (1.0 - kept)) * abs(apart) * rng.permutation(_normal(DRAWS))
        # Families are measured apart, so their errors are independent: shuffle the stratified draws.
        own = np.log(rng.permutation(_evenly(law.sample(n, d, best=True), DRAWS)))
        draws[family] = np.exp(own + kept * apart + spread)
    losses = np.stack([draws[family] for family in tables])
    best = losses.min(axis=0)
    share = np.bincount(losses.argmin(axis=0), minlength=len(draws)) / losses.shape[1]
    lo, hi = np.quantile(losses, [0.5 - level / 2, 0.5 + level / 2], axis=1)
    standings = sorted(
        (
            Standing(
                f,
                moved[f],
                (min(float(lo[k]), moved[f]), max(float(hi[k]), moved[f])),
                float(share[k]),
                float((losses[k] - best).mean()),
            )
            for k, f in enumerate(tables)
        ),
        key=lambda s: s.regret,
    )
    naive_best = min(naive, key=lambda family: naive[family])
    crossings = [_crossover(a, b, fitted[a], fitted[b], level) for a, b in combinations(tables, 2)]
    warnings = []
    if standings[0].family != naive_best:
        warnings.append(
            f"the laws say {standings[0].family}, the largest measured rung says {naive_best}: "
            "the curves cross, or one is wrong"
        )
    if len(standings) > 1 and standings[0].p_best < 0.6:
        warnings.append(f"{standings[0].family} and {standings[1].family} cannot be distinguished at this budget")
    return Comparison(
        float(compute), tuple(standings), standings[0].family, naive_best, naive, budget,
        level, tuple(warnings), tuple(c for c in crossings if c is not None),
    )  # fmt: skip


def _ranking_kept(laws: Sequence[SizeDataLaw]) -> float:
    """The weight of the last rung's ranking beside the forecasts: by which of them predicted the differences between
    families better at the rolling origins; a half where there is no such backtest."""
    found = [
        row
        for a, b in combinations([law.forecast for law in laws], 2)
        if a is not None and b is not None
        for row in differences(a, b)
    ]
    if not found:
        return 0.5
    origin, ours, last = np.array(found).T
    count = int(np.unique(origin).size)
    own, naive = (sum(np.mean(e[origin == o] ** 2) for o in np.unique(origin)) / count for e in (ours, last))
    usual = 0.5 * (own + naive)
    if usual <= 0:
        return 0.5
    own, naive = ((count * e / usual + SHRUNK) / (count + SHRUNK) + FLOOR for e in (own, naive))
    power = min(POWERS[0] + POWERS[1] * count, POWERS[2])
    return float(naive**-power / (naive**-power + own**-power))


def _normal(count: int) -> Array:
    """Stratified quantiles of the normal distribution, as many as asked for."""
    from scipy.special import ndtri

    return np.asarray(ndtri((np.arange(count) + 0.5) / count))


def _evenly(draws: Array, count: int) -> Array:
    """`count` of the sorted draws, evenly spaced: the same whatever their order."""
    at = (np.arange(count) + 0.5) / count * draws.size - 0.5
    return np.interp(at, np.arange(draws.size), np.sort(draws))


def _crossover(first: str, second: str, a: SizeDataLaw, b: SizeDataLaw, level: float) -> Crossover | None:
    """Where the frontiers of two families cross for the last time within reach, if they do."""
    start = max(a.compute_range[0], b.compute_range[0])
    grid = np.geomspace(start, REACH * max(a.compute_range[1], b.compute_range[1]), 120)
    point = np.log(a.frontier(grid) / b.frontier(grid))
    left, right = a.frontier_replicates(grid), b.frontier_replicates(grid)
    count = min(len(left), len(right))
    # Replicates of two families come from the same random numbers: shuffled, or their errors would cancel.
    rng = np.random.default_rng(0)
    gap = np.log(left[:count] / right[rng.permutation(len(right))[:count]])
    # Each pair also draws how far both forecasts may be off beyond their data, as their backtests were.
    for law in (a, b):
        gap = gap + rng.standard_t(law.backtests.freedom, (count, 1)) * law.drift(grid)
    signs = np.sign(point)
    changes = np.flatnonzero(signs[1:] != signs[:-1])
    if not changes.size:
        return None
    # `earlier` is the better one below the law's last crossing; seen from it, gaps go from negative to positive.
    at = int(changes[-1])
    earlier, later, turn = (first, second, 1.0) if point[-1] > 0 else (second, first, -1.0)
    here = float(np.log(_zero(grid, turn * point, np.array([at]))[0]))
    crossing = [_overtaking(grid, turn * row, here) for row in gap]
    ends = float(grid[0]), float(grid[-1])
    lo, hi = np.quantile(crossing, [0.5 - level / 2, 0.5 + level / 2])
    inside = float(np.mean([ends[0] < c < ends[1] for c in crossing]))
    return Crossover(earlier, later, float(np.exp(here)), (float(lo), float(hi)), inside, ends)


def _overtaking(grid: Array, gap: Array, here: float) -> float:
    """The zero nearest to log budget `here` at which `gap` turns positive; an end of the grid if there is none."""
    rising = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
    if rising.size:
        zeros = _zero(grid, gap, rising)
        return float(zeros[np.argmin(np.abs(np.log(zeros) - here))])
    return float(grid[0] if np.interp(here, np.log(grid), gap) >= 0 else grid[-1])


def _zero(grid: Array, gap: Array, at: NDArray[np.intp]) -> Array:
    """Where `gap` is zero between points `at` and `at` + 1 of the grid, linear in log budget."""
    before, after = gap[at], gap[at + 1]
    share = np.clip(before / np.where(before == after, 1.0, before - after), 0.0, 1.0)
    return np.asarray(np.exp(np.log(grid[at]) + share * np.log(grid[at + 1] / grid[at])))


def naive_ranking(tables: Mapping[str, Table]) -> tuple[dict[str, float], float]:
    """The best loss of each family at the largest budget that all reached (or the nearest to it that each has)."""
    points = {family: frontier_points(*table) for family, table in tables.items()}
    budget = min(p.compute[-1] for p in points.values())
    naive = {}
    for family, p in points.items():
        nearest = int(np.argmin(np.abs(np.log(np.array(p.compute) / budget))))
        naive[family] = p.loss[nearest]
    return naive, budget


# Do two families match at equal compute? The runs of one against the frontier law of the other, with an interval.


@dataclass(frozen=True)
class Match(JsonRecord):
    """Runs of one family measured against the frontier of another, in the units of the loss (or error).

    Attributes:
        compute, measured, expected: each run, and what the frontier's law gives at its compute.
        differences: measured - expected; negative is better than the frontier.
        intervals: (lo, hi) of each difference at `level`.
        mean, mean_interval: over the runs; the law's error is common to all of them and is not averaged away.
        matched: whether 0 lies inside the interval of the mean.
        statement: the same in words.
    """

    compute: tuple[float, ...]
    measured: tuple[float, ...]
    expected: tuple[float, ...]
    differences: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    mean: float
    mean_interval: tuple[float, float]
    level: float
    matched: bool
    statement: str


def match_at_equal_compute(
    frontier: FrontierLaw,
    compute: ArrayLike,
    measured: ArrayLike,
    *,
    names: tuple[str, str] = ("these runs", "the frontier"),
    unit: str = "",
    level: float = 0.9,
) -> Match:
    """Whether runs of another family lie on `frontier` at their own compute.

    Args:
        frontier: law of the reference family. compute, measured: the other family's runs, (m,), in the same units.
        names: of the other family and of the reference. unit: of the loss, for the statement.

    Raises:
        LawError: no run, or values not positive and finite.
    """
    x, y = positive_columns(compute=compute, measured=measured)
    if not x.size:
        raise LawError("a match needs at least one run")
    # One draw of `sample` shares its quantile between all compute values: errors of the law move together.
    difference = y - frontier.sample(x)
    ends = [0.5 - level / 2, 0.5 + level / 2]
    lo, hi = np.quantile(difference, ends, axis=0)
    mean_lo, mean_hi = (float(v) for v in np.quantile(difference.mean(axis=1), ends))
    expected = frontier.predict(x)
    mean = float((y - expected).mean())
    matched = mean_lo <= 0.0 <= mean_hi
    verdict = "match" if matched else ("beat" if mean < 0 else "fall short of")
    statement = (
        f"At equal compute {names[0]} {verdict} {names[1]}: {mean:+.2f}{unit} on average over {x.size} runs "
        f"({level:.0%} interval {mean_lo:+.2f} to {mean_hi:+.2f}{unit})"
    )
    return Match(
        tuple(x.tolist()), tuple(y.tolist()), tuple(expected.tolist()), tuple((y - expected).tolist()),
        tuple(zip(lo.tolist(), hi.tolist(), strict=True)), mean, (mean_lo, mean_hi), level, matched, statement,
    )  # fmt: skip
