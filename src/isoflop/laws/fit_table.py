"""Laws of a table of results: the computation of `isoflop fit TABLE.csv --x … --y … [--budget …]`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import LawError, did_you_mean
from isoflop.laws.audit import Finding, audit_curve, audit_size_data
from isoflop.laws.columns import Columns, JsonRecord, TableSource, fault, read_columns, tells_nothing, words_of
from isoflop.laws.compare import Comparison, Crossover, compare
from isoflop.laws.curve import CurveLaw, fit_curve
from isoflop.laws.forms import FORMS
from isoflop.laws.roles import Runs, read_runs
from isoflop.laws.size_data import SizeDataLaw, fit_size_data
from isoflop.laws.size_data_fit import check_table
from isoflop.laws.solve import Array
from isoflop.laws.speedup import Speedup, frontier_of_curve, speedup

AUDIT_COLUMNS = ("learning_rate", "warmup", "schedule", "horizon")
DRAWN = 2000
"""Points of a group that a picture shows at most."""


@dataclass(frozen=True)
class Prediction(JsonRecord):
    """What a law says at `budget`: the value, its interval, and for two axes the size `n` and images `d`.

    n and d are the best ones, or those that were asked about. `formula` is what the printed formula alone gives there,
    without the candidates beside it; None where no formula is printed. `epochs` is how often it sees each of `unique`
    different images, and `twice` the same prediction with twice as many: the value, and its ratio to this one with the
    interval of the ratio.
    """

    budget: float
    value: float
    interval: tuple[float, float]
    level: float
    n: float | None = None
    d: float | None = None
    n_interval: tuple[float, float] | None = None
    formula: float | None = None
    unique: float | None = None
    epochs: float | None = None
    twice: tuple[float, float, tuple[float, float]] | None = None


@dataclass(frozen=True)
class GroupFit(JsonRecord):
    """The law of one group of rows (or of all): one of `curve` and `size_data` is there, or `refusal` says why not.

    `refusal` says why there is no law, or no prediction although one was asked for; `points` is (x or n·d, y) of each
    row, of `DRAWN` where there are more.
    """

    name: str
    rows: int
    points: tuple[tuple[float, float], ...]
    curve: CurveLaw | None
    size_data: SizeDataLaw | None
    audit: tuple[Finding, ...]
    prediction: Prediction | None
    refusal: str

    @property
    def has_law(self) -> bool:
        return self.curve is not None or self.size_data is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the law and of its audit, each once."""
        law = self.curve or self.size_data
        said = list(law.warnings) if law else []
        found = [f for f in self.audit if f.verdict == "warning" and f.detail not in said]
        return tuple(said + [f"{f.check}: {f.detail}" for f in found])


@dataclass(frozen=True)
class TableFit(JsonRecord):
    """Every group's law, and the comparison of groups where size, images and a budget were given.

    `x` names one axis (a curve) or two (training FLOPs an image and images), as in `fit_table`; `unit` is that of y
    after accuracies were turned into errors. `notes` says what was guessed, counted and left out.
    """

    source: str
    x: tuple[str, ...]
    y: str
    unit: str
    groups: tuple[GroupFit, ...]
    comparison: Comparison | None
    notes: tuple[str, ...] = ()
    speedup: Speedup | None = None

    def _repr_html_(self) -> str:
        """The picture and the words, for a notebook."""

        return f"{svg(picture(self))}<pre>{escape(markdown(self))}</pre>"


def fit_table(
    table: Path | Columns | Runs,
    *,
    x: Sequence[str] = (),
    y: str | None = None,
    by: str | None = None,
    budget: float | None = None,
    at: tuple[float, float] | None = None,
    faster: tuple[str, str] | None = None,
    accuracy: bool | None = None,
    unique: str | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> TableFit:
    """Laws of a table, by group.

    Args:
        table: a CSV file or its columns, or its runs as `read_runs` gives them. x: one axis (a curve in compute, images
            …) or two (n = training FLOPs per image, d = images; compute is their product); an axis is a column,
            "6*column" or "column/column". Guessed from the columns' names when left out. y: loss, error, or accuracy
            (0..1 or %), guessed alike.
        by: a column that separates families; guessed if neither x nor y is given, "none" for none. budget: where to
            predict, in the unit of x (or of n·d). at: or the size and data to predict, in the units of their columns.
        faster: two groups (A, B): how many times less compute A needs than B for equal loss, at the budget of B or over
            the losses that both reached.
        accuracy: whether y is an accuracy; guessed from its name if None. unique: the column of different images (or
            tokens) behind those seen, "none" if none repeat; guessed from its name. level: of the intervals. seed: of
            bootstraps.

    Raises:
        LawError: a file that cannot be read, a missing column (with a suggestion) or one given twice, cells that are
            not positive finite numbers, accuracies above 100, rows listed twice, too few points, one budget only, a
            constant loss.
    """
    for name, value in (("budget", budget), *(("size and data", v) for v in at or ())):
        if value is not None and (wrong := fault(value)):
            raise LawError(f"the {name} must be {wrong}, not {value:g}")
    if budget is not None and at is not None:
        raise LawError("give a budget or a size and data (--at), not both")
    if not 0 < level < 1:
        raise LawError(f"the level must be between 0 and 1, not {level:g}")
    if seed < 0:
        raise LawError(f"the seed must be 0 or more, not {seed}")
    if not isinstance(table, Runs):
        columns, source = read_columns(table) if isinstance(table, Path) else (table, TableSource("table"))
        table = read_runs(columns, source, x, y, by, accuracy, unique)
    runs, axes, loss = table, table.axes, table.loss
    if at is not None:
        if len(axes) == 1:
            raise LawError("--at asks about a size and data: give two columns as x, or a budget instead")
        at = (at[0] * runs.x[0].factor if runs.x[0].over is None else at[0], at[1] * runs.x[1].factor)
    if faster:
        if runs.by is None or faster[0] == faster[1]:
            raise LawError("a speedup is of two groups" + ("" if runs.by else ": add --by"))
        known = dict.fromkeys(runs.family)
        for name in (name for name in faster if name not in known):
            hint = did_you_mean(name, known) or f". There are {', '.join(list(known)[:20])}"
            raise LawError(f"there is no group `{name}`{hint}")
    groups, tables = [], {}
    for name, here in _groups(runs.family).items():
        part = [axis[here] for axis in axes]
        try:
            if len(axes) == 1:
                groups.append(_curve(name, part[0], loss[here], runs, budget, level))
            else:
                groups.append(_size_data(name, (part[0], part[1], loss[here]), here, runs, budget, at, level, seed))
                tables[name] = (part[0], part[1], loss[here])
        except LawError as problem:
            groups.append(
                GroupFit(
                    name,
                    here.size,
                    _points(np.prod(part, axis=0), loss[here]),
                    None,
                    None,
                    (),
                    None,
                    f"no law: {problem}",
                )
            )
    if not any(group.has_law for group in groups):
        first = groups[0]
        where = f"{runs.source.name}{f', {runs.by} {first.name}' if runs.by else ''}"
        raise LawError(f"{where}: {first.refusal.removeprefix('no law: ')}")
    comparison = None
    sound = {g.name: g.size_data for g in groups if g.size_data is not None and g.prediction is not None}
    if budget is not None and len(sound) > 1:
        comparison = compare({f: tables[f] for f in sound}, budget, laws=sound, level=level, seed=seed)
        left_out = tuple(f"{g.name} is left out: {g.refusal}" for g in groups if g.refusal)
        comparison = replace(comparison, warnings=comparison.warnings + left_out)
    notes = runs.notes + tuple(f"{runs.by} {g.name} is left out, {g.refusal}" for g in groups if not g.has_law)
    compared = None if faster is None else _speedup(runs, groups, faster, budget, level)
    named = faster or (tuple(sound) if comparison else ())
    notes += _unlike(runs, {name: here for name, here in _groups(runs.family).items() if name in named})
    return TableFit(
        runs.source.name, tuple(a.text for a in runs.x), runs.y, runs.unit, tuple(groups), comparison, notes, compared
    )


UNLIKE = {
    "dataset", "data", "corpus", "task", "tasks", "benchmark", "domain", "language", "metric", "vocab", "vocabulary",
    "tokenizer", "tokeniser",
}  # fmt: skip
"""Words of a column's name whose values may each have a loss of their own scale."""
APART = 1.25
"""Losses of two groups that differ by this factor at the least may have different scales."""


def _unlike(runs: Runs, groups: dict[str, NDArray[np.intp]]) -> tuple[str, ...]:
    """A warning where groups that are compared may have losses of different scales: by the column's name, or because
    their losses have no value in common although their compute has."""
    why = f"`{runs.by}` names what the loss is of" if UNLIKE & set(words_of(runs.by or "")) else ""
    compute = np.prod(runs.axes, axis=0)
    for a, b in combinations(groups, 2):
        (cost, loss), (other, worse) = ((compute[rows], runs.loss[rows]) for rows in (groups[a], groups[b]))
        alike = cost.min() <= other.max() and other.min() <= cost.max()
        if alike and (loss.min() > APART * worse.max() or worse.min() > APART * loss.max()):
            why = f"no loss of {a} is near any of {b} at like compute"
            break
    if len(groups) < 2 or not why:
        return ()
    return (
        f"warning: {why}: losses on other data, tasks or vocabularies have other scales; do not compare these groups",
    )


def _speedup(runs: Runs, groups: list[GroupFit], names: tuple[str, str], budget: float | None, level: float) -> Speedup:
    known = {group.name: group for group in groups}
    laws = []
    for name in names:
        group, here = known[name], np.flatnonzero(np.array(runs.family) == name)
        if not group.has_law:
            raise LawError(f"no speedup: {name} has {group.refusal}")
        laws.append((name, group.size_data or frontier_of_curve(runs.axes[0][here], runs.loss[here])))
    return speedup(laws[0], laws[1], budget, level=level)


def _groups(names: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """The rows of each name, names in the order of their first mention."""
    distinct, first, code = np.unique(np.array(names), return_index=True, return_inverse=True)
    rows = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    return {str(distinct[k]): rows[k] for k in np.argsort(first)}


def _points(x: Array, y: Array) -> tuple[tuple[float, float], ...]:
    """What is drawn of the rows of a group: all, or `DRAWN` of them, evenly spaced in x, and the lowest."""
    if x.size > DRAWN:
        evenly = np.lexsort((y, x))[np.linspace(0, x.size - 1, DRAWN - 1).round().astype(int)]
        chosen = np.append(evenly, y.argmin())
        x, y = x[chosen], y[chosen]
    return tuple(zip(x.tolist(), y.tolist(), strict=True))


def _curve(name: str, x: Array, y: Array, runs: Runs, budget: float | None, level: float) -> GroupFit:
    law = fit_curve(x, y)
    prediction, refusal = None, ""
    if budget is not None:
        value, (lo, hi) = float(law.predict(budget)), (float(v) for v in law.interval(budget, level))
        first, last = law.x_range
        if budget < first:
            refusal = f"no answer at {budget:g}: the points begin at {first:g}, smaller values are not predicted"
        elif y[np.argmax(x)] > y[np.argmin(x)] and (_correlation(x, y)) > 0.5:
            refusal = f"no answer at {budget:g}: {_rising(runs, 'x')}"
        elif budget > last and value > 1.05 * float(law.predict(last)):
            refusal = f"no answer at {budget:g}: the curve turns upwards, and laws are of what falls"
        else:
            refusal = _cannot_tell(lo, hi, budget, level)
        if not refusal:
            prediction = Prediction(budget, value, (lo, hi), level)
    return GroupFit(name, y.size, _points(x, y), law, None, audit_curve(law, x, y), prediction, refusal)


def _correlation(x: Array, y: Array) -> float:
    return float(np.corrcoef(np.log(x), np.log(y))[0, 1])


def _rising(runs: Runs, x: str) -> str:
    """What to do about a loss that rises with `x`."""
    said = f"y rises with {x}, and laws are of losses and errors, which fall"
    bounded = runs.unit == runs.y and runs.loss.max() < 100
    return f"{said}; if `{runs.y}` is an accuracy or a score of at most 1 or 100, add --accuracy" if bounded else said


def _size_data(
    name: str,
    table: tuple[Array, Array, Array],
    rows: NDArray[np.intp],
    runs: Runs,
    budget: float | None,
    at: tuple[float, float] | None,
    level: float,
    seed: int,
) -> GroupFit:
    n, d, y = table
    extra = {c: [runs.columns[c][k] for k in rows] for c in AUDIT_COLUMNS if c in runs.columns}
    check_table(n, d, y)
    compute = n * d
    if np.ptp(np.log(compute)) < np.log(1.15):
        raise LawError("all runs have the same budget: a law needs at least two, better four")
    different = None if runs.unique is None else runs.unique[rows]
    law = fit_size_data(n, d, y, different, seed=seed)
    findings = audit_size_data(law, n, d, y, extra, different)
    unsound = [f.detail for f in findings if f.check in ("convergence", "identifiability") and f.verdict == "warning"]
    prediction, refusal = None, ""
    asked = budget if budget is not None else at[0] * at[1] if at else None
    if asked is not None:
        best_n, best_d = at or law.optimal(asked)[:2]
        interval = law.optimal_interval(asked, level) if at is None else None
        lo, hi = interval["loss"] if interval else (float(v) for v in law.interval(best_n, best_d, level))
        if _correlation(compute, y) > 0.5:
            refusal = f"no answer at {asked:g}: {_rising(runs, 'compute')}"
        elif unsound and (at is None or not _inside(law, *at)):
            refusal = f"no answer at {asked:g}: {unsound[0]}"
        else:
            refusal = _cannot_tell(lo, hi, asked, level)
        if not refusal:
            value = float(law.predict(best_n, best_d, best=at is None))
            formula = float(law.formula(best_n, best_d))
            sizes = interval["n"] if interval else None
            prediction = Prediction(asked, value, (lo, hi), level, best_n, best_d, sizes, formula)
            if law.unique is not None:
                ratio, ends = law.more_images(asked, level=level, at=at)
                twice = (value * ratio, ratio, ends) if law.variants else None
                prediction = replace(prediction, unique=law.unique, epochs=best_d / law.unique, twice=twice)
                if far := law.beyond_epochs(best_d):
                    law = replace(law, warnings=(*law.warnings, far))
    return GroupFit(name, y.size, _points(compute, y), None, law, findings, prediction, refusal)


def _inside(law: SizeDataLaw, n: float, d: float) -> bool:
    """Whether (n, d) lies among the runs, where a law needs no exponents to predict."""
    lows, highs = zip(law.n_range, law.d_range, law.compute_range, strict=True)
    return all(lo <= v <= hi for lo, v, hi in zip(lows, (n, d, n * d), highs, strict=True))


def _cannot_tell(lo: float, hi: float, budget: float, level: float) -> str:
    """Why an interval is no answer, "" if it is one."""
    if not tells_nothing(lo, hi):
        return ""
    factor = f"{hi / lo:.0f}" if hi < 1e6 * lo else "more than a million"
    return f"no answer at {budget:g}: the {level:.0%} interval spans a factor of {factor}, which is too wide"


# A fitted table as Markdown and as a picture (data for any plotter, and a plain SVG).


COLOURS = ("#3366cc", "#dc6b19", "#2a9d5c", "#a23bb4", "#c22f3d", "#7a6a2f", "#2b8ca3", "#666666")


def markdown(fit: TableFit) -> str:
    """The laws, predictions, backtests and warnings of a table, for a terminal or a page."""
    lines = [f"# Laws of {fit.source}", ""]
    lines += [f"x: {' × '.join(fit.x)} · y: {fit.unit} · interval: one more run should fall inside", ""]
    lines += [f"- {note}" for note in fit.notes] + ([""] if fit.notes else [])
    for group in (group for group in fit.groups if group.has_law):
        lines += [f"## {group.name}: {group.rows} rows", "", _law(group), ""]
        if group.prediction:
            lines += [_predicted(fit, group.prediction), ""]
        if group.refusal:
            lines += [f"**{group.refusal}**", ""]
        lines += [_coverage(group), ""]
        lines += [f"- warning: {warning}" for warning in group.warnings] + ([""] if group.warnings else [])
    if fit.comparison:
        c = fit.comparison
        lines += [
            f"## Which is best at {c.compute:.3g}",
            "",
            f"| | predicted | {c.level:.0%} interval | P(best) | regret |",
        ]
        lines += ["|---|---|---|---|---|"]
        for s in c.standings:
            interval = f"{s.interval[0]:.4g} to {s.interval[1]:.4g}"
            lines += [f"| {s.family} | {s.loss:.4g} | {interval} | {s.p_best:.0%} | {s.regret:.3g} |"]
        ranking = ", ".join(f"{f} {v:.4g}" for f, v in sorted(c.naive.items(), key=lambda item: item[1]))
        lines += ["", f"Naive ranking at the largest shared budget ({c.naive_compute:.3g}): {ranking}", ""]
        for x in c.crossovers:
            lines += [
                f"{x.later} overtakes {x.earlier} at {x.compute:.2g} ({c.level:.0%} interval {_crossing(x)}; "
                f"{x.probability:.0%} of the bootstrap pairs cross so)",
                "",
            ]
        lines += [f"- warning: {warning}" for warning in c.warnings]
    if fit.speedup:
        lines += ["", f"## Speedup of {fit.speedup.faster} over {fit.speedup.slower}", "", fit.speedup.statement]
    return "\n".join(lines).rstrip() + "\n"


def _predicted(fit: TableFit, p: Prediction) -> str:
    lo, hi = p.interval
    said = f"At {p.budget:.3g}: **{p.value:.4g}** ({p.level:.0%} interval {lo:.4g} to {hi:.4g})"
    if p.n is not None and p.d is not None:
        said += f" with {_size(fit.x[0], p.n)}, d = {p.d:.3g}"
        if p.n_interval:
            lo, hi = p.n_interval
            said += f" (n {lo:.3g} to {hi:.3g})" if hi > lo else " (n held near the sizes that were tried)"
    if p.formula is not None and abs(p.value / p.formula - 1) > 5e-5:
        said += (
            f". The formula alone gives {p.formula:.4g}; beyond the data the prediction is that of the mixture "
            f"({p.value / p.formula - 1:+.2%})"
        )
    if p.unique is not None and p.epochs is not None:
        said += f". That is {p.epochs:.3g} epochs of {p.unique:.3g} different ones"
        if p.twice:
            value, ratio, (lo, hi) = p.twice
            said += f"; with twice as many the loss is {value:.4g} ({ratio - 1:+.1%}, {lo - 1:+.1%} to {hi - 1:+.1%})"
    return said


def _size(x: str, n: float) -> str:
    """A size n, also in the unit of its column where n is a multiple of it."""
    factor, star, column = x.partition("*")
    try:
        return f"n = {n:.3g} ({column} {n / float(factor):.3g})" if star and "/" not in x else f"n = {n:.3g}"
    except ValueError:  # a column whose name has a star
        return f"n = {n:.3g}"


def _law(group: GroupFit) -> str:
    if group.size_data:
        law = group.size_data
        (a_lo, a_hi), (b_lo, b_hi) = law.exponent_intervals["alpha"], law.exponent_intervals["beta"]
        d, more = "d", ""
        if law.repeats:
            d = "D"
            more = f"\n\nwith D effective ones of d: after one epoch at most {law.repeats.limit:.3g} more (R*)"
            if law.repeats.harm > 0:
                more += f", and repeated views r add {_harm(law)} (U different ones)"
        if law.variants:
            votes = ", ".join(f"{name} {weight:.0%}" for name, weight in law.variants.items())
            more += f"\n\nRepeated data, by backtest and fit: {votes}; at most {law.epochs:.3g} epochs in a run"
        return (
            f"L = {law.irreducible:.4g} + {law.a:.4g}·n^-{law.alpha:.3f} + {law.b:.4g}·{d}^-{law.beta:.3f} "
            f"(α {a_lo:.2f} to {a_hi:.2f}, β {b_lo:.2f} to {b_hi:.2f} at {law.level:.0%}); best size ∝ C^"
            f"{law.exponents()['size']:.2f}; fitted to {law.window}, noise {law.noise:.1%}{more}"
            + (f"\n\nBeyond the data, by backtest: {_votes(law.forecast)}" if law.forecast else "")
        )
    if group.curve is None:
        return "No law."
    return f"A mixture, by backtest: {_votes(group.curve)}; noise {group.curve.noise:.1%}"


def _harm(law: SizeDataLaw) -> str:
    r = law.repeats
    assert r
    return f"{r.harm:.3g}·n^{r.size:.2f}·r^{r.growth:.2f}" + (f"·U^-{r.images:.2f}" if r.images else "")


def _votes(curve: CurveLaw) -> str:
    """The candidates of a mixture with their weights and backtest errors, heaviest first."""
    votes: dict[str, float] = {}
    errors: dict[str, float] = {}
    for member in curve.members:
        votes[member.form] = votes.get(member.form, 0.0) + member.weight
        if member.backtest is not None:
            errors[member.form] = min(errors.get(member.form, np.inf), member.backtest)
    return ", ".join(
        (FORMS[f].formula if f in FORMS else f) + f" {w:.0%}" + (f" (RMSE {errors[f]:.2%})" if f in errors else "")
        for f, w in sorted(votes.items(), key=lambda v: -v[1])
        if w >= 0.01
    )


def _crossing(x: Crossover) -> str:
    (lo, hi), (first, last) = x.interval, x.searched or (0.0, np.inf)
    return f"{'before ' if lo <= first else ''}{lo:.2g} to {'beyond ' if hi >= last else ''}{hi:.2g}"


def _coverage(group: GroupFit) -> str:
    if group.size_data:
        given = group.prediction is not None and group.prediction.n_interval is None  # a run, not the best of a budget
        tests = (group.size_data.runs if given else None) or group.size_data.backtests
        share, level = tests.coverage, tests.level
        count = f"{len(tests.errors)} predictions"
        if tests.errors:
            rms = float(np.sqrt(np.mean(np.square(tests.errors))))
            count += f" (RMSE {rms:.2%}, up to {np.exp(max(tests.distances)):.3g} times the compute fitted)"
    else:
        assert group.curve is not None
        share, count, level = group.curve.backtest_coverage, "the points held back", 0.9
    if share is None:
        return "Backtest: none possible; the interval beyond the data is a guess."
    return f"Backtest: {share:.0%} of {count} fell inside the {level:.0%} interval given at the time."


def picture(fit: TableFit, points: int = 80) -> dict[str, Any]:
    """Points, laws and bands of a table as plain data: {title, x, y, series: [{name, kind, colour, x, y}]}.

    Both axes are logarithmic; x is the column, or compute n·d. `kind` is "points" (with a `radius` if not 3), "line" or
    "band" (y to `y2`).
    """
    series: list[dict[str, Any]] = []
    for k, group in enumerate(group for group in fit.groups if group.has_law):
        colour = COLOURS[k % len(COLOURS)]
        x = np.array([p[0] for p in group.points])
        end = max(x.max() * 2, group.prediction.budget if group.prediction else 0.0)
        grid = np.geomspace(x.min(), end, points)
        if group.curve:
            middle, (lo, hi) = group.curve.predict(grid), group.curve.interval(grid)
        else:
            assert group.size_data is not None
            best = [group.size_data.optimal(float(c)) for c in grid]
            middle = np.array([b[2] for b in best])
            lo, hi = group.size_data.interval([b[0] for b in best], [b[1] for b in best], best=True)
        base = {"name": group.name, "colour": colour}
        series.append({**base, "kind": "band", "x": grid.tolist(), "y": lo.tolist(), "y2": hi.tolist()})
        series.append({**base, "kind": "line", "x": grid.tolist(), "y": middle.tolist()})
        series.append({**base, "kind": "points", "x": x.tolist(), "y": [p[1] for p in group.points]})
    return {"title": fit.source, "x": " × ".join(fit.x), "y": fit.unit, "series": series}


def svg(data: dict[str, Any], width: int = 760, height: int = 480) -> str:
    """The picture as one SVG document: logarithmic axes, bands behind lines behind points; text is escaped."""
    left, right, top, bottom = 78, 18, 40, 56
    values = [np.log10(np.array(s[axis])) for s in data["series"] for axis in ("x",)]
    heights = [np.log10(np.array(s[axis])) for s in data["series"] for axis in ("y", "y2") if axis in s]
    x0, x1 = min(v.min() for v in values), max(v.max() for v in values)
    y0, y1 = min(v.min() for v in heights), max(v.max() for v in heights)
    pad = 0.04 * max(y1 - y0, 1e-6)
    y0, y1 = y0 - pad, y1 + pad
    margin = 0.015 * max(x1 - x0, 1e-6)  # no dot is cut by the edge
    x0, x1 = x0 - margin, x1 + margin

    def px(x: Any) -> Any:
        return left + (np.log10(x) - x0) / max(x1 - x0, 1e-9) * (width - left - right)

    def py(y: Any) -> Any:
        return height - bottom - (np.log10(y) - y0) / (y1 - y0) * (height - top - bottom)

    def path(x: list[float], y: list[float]) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px(np.array(x)), py(np.array(y)), strict=True))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="22" font-size="14" font-weight="600">{escape(str(data["title"]))}</text>',
    ]
    for tick in _ticks(x0, x1):
        x = float(px(tick))
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}" stroke="#e6e6e6"/>')
        out.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#444">{tick:g}</text>')
    for tick in _ticks(y0, y1):
        y = float(py(tick))
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e6e6"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{tick:g}</text>')
    for kind in ("band", "line", "points"):
        for s in (s for s in data["series"] if s["kind"] == kind):
            if kind == "band":
                outline = path(s["x"], s["y"]) + " " + path(s["x"][::-1], s["y2"][::-1])
                out.append(f'<polygon points="{outline}" fill="{s["colour"]}" fill-opacity="0.14"/>')
            elif kind == "line":
                line = path(s["x"], s["y"])
                out.append(f'<polyline points="{line}" fill="none" stroke="{s["colour"]}" stroke-width="1.8"/>')
            else:
                dots = zip(px(np.array(s["x"])), py(np.array(s["y"])), strict=True)
                dot = f'r="{s.get("radius", 3):g}" fill="{s["colour"]}"/>'
                out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" {dot}' for a, b in dots]
    names = dict.fromkeys((s["name"], s["colour"]) for s in data["series"])
    for k, (name, colour) in enumerate(names):
        y = top + 14 + 17 * k
        out.append(f'<circle cx="{width - right - 150}" cy="{y - 4}" r="4" fill="{colour}"/>')
        out.append(f'<text x="{width - right - 140}" y="{y}">{escape(str(name))}</text>')
    across, up = (left + width - right) / 2, (top + height - bottom) / 2
    for label, where in (
        ("x", f'x="{across}" y="{height - 14}"'),
        ("y", f'transform="translate(18 {up}) rotate(-90)"'),
    ):
        out.append(f'<text {where} text-anchor="middle">{escape(str(data[label]))}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10^low and 10^high: decades if there are three, else 1-2-5, else equal steps."""
    first, last = int(np.floor(low)), int(np.ceil(high))
    for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        ticks = [m * 10.0**e for e in range(first, last + 1) for m in digits if low <= np.log10(m * 10.0**e) <= high]
        if len(ticks) >= 4 or (len(ticks) == 3 and digits == (1.0,)):
            return [float(f"{t:.3g}") for t in ticks[:: max(len(ticks) // 8, 1)]]
    start, end = 10.0**low, 10.0**high
    unit = 10.0 ** np.floor(np.log10((end - start) / 3))
    step = unit * max(m for m in (1, 2, 2.5, 5) if m * unit <= (end - start) / 3)
    return [float(f"{k * step:.6g}") for k in range(int(np.ceil(start / step)), int(end / step) + 1)]
