"""Checks of a fit, with a message for each problem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.laws.backtest import doubt
from isoflop.laws.columns import JsonRecord
from isoflop.laws.curve import LEVEL, CurveLaw
from isoflop.laws.size_data import SizeDataLaw
from isoflop.laws.size_data_choice import edge_share
from isoflop.laws.solve import Array

CONDITION = 1e6
"""Above this condition number of the scaled normal matrix, single parameters mean nothing."""


@dataclass(frozen=True)
class Finding(JsonRecord):
    """One check: `verdict` is "ok", "warning" or "unknown" (the table lacks what the check needs)."""

    check: str
    verdict: str
    detail: str


def audit_size_data(
    law: SizeDataLaw,
    n: ArrayLike,
    d: ArrayLike,
    loss: ArrayLike,
    runs: Mapping[str, Sequence[object]] | None = None,
    unique: ArrayLike | None = None,
) -> tuple[Finding, ...]:
    """Every check of a size-data law and of the runs behind it.

    Args:
        law: what was fitted to n, d and loss (in the order of the table).
        runs: further columns where the table has them: `learning_rate`, `warmup` (share of the steps), `schedule`,
            `horizon` (images the schedule was made for).
        unique: different images of each run, as in `fit_size_data`.
    """
    x, y, z = (np.log(np.asarray(v, dtype=np.float64)) for v in (n, d, loss))
    columns = runs or {}
    return (
        _verdict("convergence", law.converged, "the best fit is a minimum", "the fit is not a minimum: do not use it"),
        _verdict(
            "agreement of starts",
            law.agreement >= 0.3,
            f"{law.agreement:.0%} of the starts end at the best fit",
            f"only {law.agreement:.0%} of the starts end at the best fit: another minimum is close",
        ),
        _identifiability(law, x, y),
        *(_residuals(np.array(law.residuals), *column) for column in (("size", x), ("images", y), ("compute", x + y))),
        _edges(x, y, z),
        _learning_rates(x, y, z, _numbers(columns, "learning_rate")),
        _warmup(_numbers(columns, "warmup")),
        _schedules(y, columns.get("schedule"), _numbers(columns, "horizon")),
        _seeds(x, y, z, law.noise, np.zeros_like(x) if unique is None else np.nan_to_num(np.log(unique))),
        _backtests(law.backtests.coverage, f"{len(law.backtests.errors)} predictions", law.backtests.level),
    )


def audit_curve(law: CurveLaw, x: ArrayLike, y: ArrayLike) -> tuple[Finding, ...]:
    """Every check of a curve's mixture: votes, residuals where it was fitted, noise, backtests."""
    t, z = np.asarray(x, dtype=np.float64), np.log(np.asarray(y, dtype=np.float64))
    votes: dict[str, float] = {}
    for member in law.members:
        votes[member.form] = votes.get(member.form, 0.0) + member.weight
    form, share = max(votes.items(), key=lambda vote: vote[1])
    fitted = t >= max(min(m.since for m in law.members if m.weight >= 0.1 * law.members[0].weight), law.x_range[1] / 4)
    residual = z[fitted] - np.log(law.predict(t[fitted]))
    repeats = np.unique(t).size < np.unique(t + 1j * z).size
    return (
        _verdict("agreement of forms", share >= 0.5, f"{share:.0%} of the vote for one form ({form})",
                 f"no form has half of the vote ({form} {share:.0%}): forms disagree about what follows"),
        _residuals(residual, "x", np.log(t[fitted])),
        _verdict("noise between seeds", repeats, "x values are repeated",
                 f"one measurement an x: noise is that of neighbouring points, {law.noise:.1%}"),
        _backtests(law.backtest_coverage, "the points held back", LEVEL),
    )  # fmt: skip


def _verdict(check: str, good: bool, fine: str, bad: str) -> Finding:
    return Finding(check, "ok" if good else "warning", fine if good else bad)


def _identifiability(law: SizeDataLaw, x: Array, y: Array) -> Finding:
    """A term below 0.1 % everywhere, an exponent that could be anything, or parameters that move together."""
    loss = law.predict(np.exp(x), np.exp(y))
    terms = {"size": law.a * np.exp(-law.alpha * x), "images": law.b * np.exp(-law.beta * y)}
    for name, exponent in (("size", "alpha"), ("images", "beta")):
        lo, hi = law.exponent_intervals[exponent]
        if float(np.max(terms[name] / loss)) < 1e-3:
            return Finding("identifiability", "warning", f"not identified: these runs show no effect of {name}")
        if lo <= 0.011 and hi >= 2.99:
            return Finding("identifiability", "warning", f"not identified: the exponent of {name} could be anything")
    if not law.condition <= CONDITION:
        return Finding("identifiability", "warning", f"not identified: condition number {law.condition:.0e}")
    return Finding("identifiability", "ok", f"condition number {law.condition:.0e}")


def _residuals(residual: Array, name: str, column: Array) -> Finding:
    """Spearman's rank correlation of the residuals and their bend against one axis, each at 3 standard errors."""
    check = f"residuals against {name}"
    if residual.size < 8:
        return Finding(check, "unknown", "fewer than 8 runs")
    rank = np.argsort(np.argsort(column)).astype(float)
    ranks = np.argsort(np.argsort(residual)).astype(float)
    bend = np.abs(rank - rank.mean())
    found = []
    for shape, axis in (("a trend", rank), ("a bend", bend)):
        correlation = float(np.corrcoef(axis, ranks)[0, 1]) if np.ptp(axis) > 0 else 0.0
        if abs(correlation) * np.sqrt(residual.size - 1) > 3.0:
            found.append(f"{shape} (rank correlation {correlation:+.2f})")
    if found:
        return Finding(check, "warning", f"{' and '.join(found)}: the form misses something along {name}")
    return Finding(check, "ok", "no trend and no bend")


def _edges(x: Array, y: Array, z: Array) -> Finding:
    check = "best size inside the grid"
    share = edge_share(x, y, z)
    if share is None:
        return Finding(check, "warning", "no budget has three sizes: nothing shows that the best size was tried")
    return _verdict(
        check,
        share <= 0.34,
        f"at {1 - share:.0%} of the budgets",
        f"at {share:.0%} of the budgets the best size is the smallest or largest tried: widen the sizes",
    )


def _numbers(columns: Mapping[str, Sequence[object]], name: str) -> Array | str:
    """A further column as numbers, or why there are none: nobody's table is refused for a column it need not have."""
    if name not in columns:
        return f"no column `{name}`"
    try:
        values = np.asarray(columns[name], dtype=np.float64)
    except ValueError:
        return f"the column `{name}` has cells that are not numbers"
    return values if np.isfinite(values).all() else f"the column `{name}` has cells that are not finite"


def _learning_rates(x: Array, y: Array, z: Array, rate: Array | str) -> Finding:
    check = "best learning rate inside the grid"
    if isinstance(rate, str):
        return Finding(check, "unknown", rate)
    edges = []
    _, group = np.unique(np.round(x, 3) + 1j * np.round(y, 1), return_inverse=True)
    for here in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
        if np.unique(rate[here]).size >= 3:
            best = rate[here][np.argmin(z[here])]
            edges.append(bool(best in (rate[here].min(), rate[here].max())))
    if not edges:
        return Finding(check, "unknown", "no size was trained at three learning rates")
    share = float(np.mean(edges))
    return _verdict(
        check,
        share <= 0.34,
        f"in {1 - share:.0%} of {len(edges)} searches",
        f"in {share:.0%} of {len(edges)} searches the best learning rate is the last one tried",
    )


def _warmup(share: Array | str) -> Finding:
    if isinstance(share, str):
        return Finding("warm-up share", "unknown", share)
    longest = float(np.max(share))
    if longest > 1:
        return Finding("warm-up share", "unknown", f"`warmup` is {longest:g}, which is no share of the steps")
    return _verdict(
        "warm-up share",
        longest <= 0.2,
        f"at most {longest:.0%} of the steps",
        f"up to {longest:.0%} of the steps: short runs look worse than they are, exponents too steep",
    )


def _schedules(y: Array, schedule: Sequence[object] | None, horizon: Array | str) -> Finding:
    check = "one schedule, decayed to the end"
    if schedule is None and isinstance(horizon, str):
        return Finding(check, "unknown", f"no column `schedule`, {horizon}")
    problems = []
    if schedule is not None and len({str(s) for s in schedule}) > 1:
        problems.append(f"schedules differ ({', '.join(sorted({str(s) for s in schedule}))})")
    if not isinstance(horizon, str):
        short = horizon > np.exp(y + 0.1)
        if short.any():
            problems.append(f"{short.mean():.0%} of the runs were read off before their schedule had ended")
    return Finding(check, "warning" if problems else "ok", "; ".join(problems) or "all alike")


REPEATS = 3
"""With fewer repeated runs, the noise between seeds is too uncertain to judge the form by."""


def _seeds(x: Array, y: Array, z: Array, noise: float, different: Array) -> Finding:
    """Repeats (same size and images, of as many) show the noise between seeds; without any, the residual must serve.

    Rows with the same loss as well are one run that is listed twice, or a rounded figure: no repeats.
    """
    check = "noise between seeds"
    key = np.round(x, 4) + 1j * np.round(y, 3)
    _, index = np.unique(key, return_inverse=True)
    _, index = np.unique(index + 1j * np.round(different, 3), return_inverse=True)
    _, first = np.unique(index + 1j * z, return_index=True)
    index, z = index[first], z[first]
    count = np.bincount(index)
    freedom = int(z.size - (count > 0).sum())
    if freedom < 1:
        return Finding(check, "warning", f"one seed a run: noise is that of the residuals, {noise:.1%}")
    centred = z - (np.bincount(index, z) / np.maximum(count, 1))[index]
    between = float(np.sqrt((centred**2).sum() / freedom))
    sizes = f"{between:.1%} between {freedom} repeat{'s' if freedom > 1 else ''}, {noise:.1%} about the law"
    if freedom < REPEATS:
        return Finding(check, "unknown", f"{sizes}: too few repeats to judge the form")
    good = noise <= 2.0 * between + 1e-3
    return _verdict(check, good, sizes, f"{sizes}: the form does not fit")


def _backtests(coverage: float | None, what: str, level: float) -> Finding:
    fine = "" if coverage is None else f"{coverage:.0%} of {what} fell inside their {level:.0%} intervals"
    doubtful = doubt(coverage, level)
    return _verdict("backtests", not doubtful, fine, doubtful)
