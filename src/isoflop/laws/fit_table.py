"""Laws of a table of results: the computation of `isoflop fit TABLE.csv --x … --y … [--budget …]`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import LawError
from isoflop.laws.audit import Finding, audit_curve, audit_size_data
from isoflop.laws.columns import (
    Columns,
    JsonRecord,
    TableSource,
    as_error,
    fault,
    name_column,
    positive_column,
    read_columns,
    refuse_duplicates,
    tells_nothing,
)
from isoflop.laws.compare import Comparison, Crossover, compare
from isoflop.laws.curve import CurveLaw, fit_curve
from isoflop.laws.forms import FORMS
from isoflop.laws.size_data import SizeDataLaw, check_table, fit_size_data
from isoflop.laws.solve import Array

AUDIT_COLUMNS = ("learning_rate", "warmup", "schedule", "horizon")
DRAWN = 2000
"""Points of a group that a picture shows at most."""


@dataclass(frozen=True)
class Prediction(JsonRecord):
    """What a law says at `budget`: the value, its interval, and for two axes the best size `n` and images `d`."""

    budget: float
    value: float
    interval: tuple[float, float]
    level: float
    n: float | None = None
    d: float | None = None
    n_interval: tuple[float, float] | None = None


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
    def warnings(self) -> tuple[str, ...]:
        """Of the law and of its audit, each once."""
        law = self.curve or self.size_data
        said = list(law.warnings) if law else []
        found = [f for f in self.audit if f.verdict == "warning" and f.detail not in said]
        return tuple(said + [f"{f.check}: {f.detail}" for f in found])


@dataclass(frozen=True)
class TableFit(JsonRecord):
    """Every group's law, and the comparison of groups where size, images and a budget were given.

    `x` names one column (a curve) or two (training FLOPs an image and images); `unit` is that of y after accuracies
    were turned into errors.
    """

    source: str
    x: tuple[str, ...]
    y: str
    unit: str
    groups: tuple[GroupFit, ...]
    comparison: Comparison | None

    def _repr_html_(self) -> str:
        """The picture and the words, for a notebook."""

        return f"{svg(picture(self))}<pre>{escape(markdown(self))}</pre>"


def fit_table(
    table: Path | Columns,
    *,
    x: Sequence[str],
    y: str,
    by: str | None = None,
    budget: float | None = None,
    accuracy: bool | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> TableFit:
    """Laws of a table, by group.

    Args:
        table: a CSV file or its columns. x: one column (a curve in compute, images …) or two (n = training FLOPs per
            image, d = images; compute is their product). y: loss, error, or accuracy (0..1 or %).
        by: a column that separates families. budget: where to predict, in the unit of x (or of n·d).
        accuracy: whether y is an accuracy; guessed from its name if None. level: of the intervals. seed: of bootstraps.

    Raises:
        LawError: a file that cannot be read, a missing column (with a suggestion) or one given twice, cells that are
            not positive finite numbers, accuracies above 100, rows listed twice, too few points, one budget only, a
            constant loss.
    """
    if isinstance(table, Path):
        columns, source = read_columns(table)
    else:
        columns, source = table, TableSource("table")
    if len(x) not in (1, 2):
        raise LawError(f"give one column as x (a curve) or two (size and images), not {len(x)}")
    if len({*x, y}) < len(x) + 1:
        raise LawError(f"a column is given twice: x {' and '.join(x)}, y {y}")
    if budget is not None and (wrong := fault(budget)):
        raise LawError(f"the budget must be {wrong}, not {budget:g}")
    if not 0 < level < 1:
        raise LawError(f"the level must be between 0 and 1, not {level:g}")
    if seed < 0:
        raise LawError(f"the seed must be 0 or more, not {seed}")
    axes = [positive_column(columns, name, source) for name in x]
    loss, unit = as_error(positive_column(columns, y, source), y, source, accuracy)
    family = name_column(columns, by, source) if by else ["all"] * loss.size
    refuse_duplicates(columns, source)
    groups, tables = [], {}
    for name, here in _groups(family).items():
        part = [axis[here] for axis in axes]
        try:
            if len(x) == 1:
                groups.append(_curve(name, part[0], loss[here], budget, level))
            else:
                extra = {c: [columns[c][k] for k in here] for c in AUDIT_COLUMNS if c in columns}
                groups.append(_size_data(name, part[0], part[1], loss[here], budget, level, seed, extra))
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
    if all(group.curve is None and group.size_data is None for group in groups):
        first = groups[0]
        raise LawError(f"{source.name}{f', {by} {first.name}' if by else ''}: {first.refusal.removeprefix('no law: ')}")
    comparison = None
    sound = {g.name: g.size_data for g in groups if g.size_data is not None and g.prediction is not None}
    if budget is not None and len(sound) > 1:
        comparison = compare({f: tables[f] for f in sound}, budget, laws=sound, level=level, seed=seed)
        left_out = tuple(f"{g.name} is left out: {g.refusal}" for g in groups if g.refusal)
        comparison = replace(comparison, warnings=comparison.warnings + left_out)
    return TableFit(source.name, tuple(x), y, unit, tuple(groups), comparison)


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


def _curve(name: str, x: Array, y: Array, budget: float | None, level: float) -> GroupFit:
    law = fit_curve(x, y)
    prediction, refusal = None, ""
    if budget is not None:
        if budget < law.x_range[0]:
            refusal = (
                f"no answer at {budget:g}: the points begin at {law.x_range[0]:g}, smaller values are not predicted"
            )
        elif y[np.argmax(x)] > y[np.argmin(x)] and np.corrcoef(np.log(x), np.log(y))[0, 1] > 0.5:
            refusal = f"no answer at {budget:g}: y rises with x, and laws are of losses and errors, which fall"
        else:
            lo, hi = (float(v) for v in law.interval(budget, level))
            refusal = _cannot_tell(lo, hi, budget, level)
            if float(law.predict(budget)) > 1.05 * float(law.predict(law.x_range[1])):
                refusal = f"no answer at {budget:g}: the curve turns upwards, and laws are of what falls"
        if not refusal:
            prediction = Prediction(budget, float(law.predict(budget)), (lo, hi), level)
    return GroupFit(name, y.size, _points(x, y), law, None, audit_curve(law, x, y), prediction, refusal)


def _size_data(
    name: str, n: Array, d: Array, y: Array, budget: float | None, level: float, seed: int, extra: dict[str, list[str]]
) -> GroupFit:
    check_table(n, d, y)
    compute = n * d
    if np.ptp(np.log(compute)) < np.log(1.15):
        raise LawError("all runs have the same budget: a law needs at least two, better four")
    law = fit_size_data(n, d, y, seed=seed)
    findings = audit_size_data(law, n, d, y, extra)
    unsound = [f.detail for f in findings if f.check in ("convergence", "identifiability") and f.verdict == "warning"]
    prediction, refusal = None, ""
    if budget is not None and unsound:
        refusal = f"no answer at {budget:g}: {unsound[0]}"
    elif budget is not None:
        best_n, best_d, value = law.optimal(budget)
        interval = law.optimal_interval(budget, level)
        refusal = _cannot_tell(*interval["loss"], budget, level)
        if not refusal:
            prediction = Prediction(budget, value, interval["loss"], level, best_n, best_d, interval["n"])
    return GroupFit(name, y.size, _points(compute, y), None, law, findings, prediction, refusal)


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
    lines += [f"x: {' × '.join(fit.x)} (as given) · y: {fit.unit} · interval: one more run should fall inside", ""]
    for group in fit.groups:
        lines += [f"## {group.name}: {group.rows} rows", "", _law(group), ""]
        if group.prediction:
            p = group.prediction
            where = f" with n = {p.n:.3g}, d = {p.d:.3g}" if p.n is not None and p.d is not None else ""
            if p.n_interval:
                lo, hi = p.n_interval
                where += f" (n {lo:.3g} to {hi:.3g})" if hi > lo else " (n held near the sizes that were tried)"
            lines += [
                f"At {p.budget:.3g}: **{p.value:.4g}** ({p.level:.0%} interval {p.interval[0]:.4g} to "
                f"{p.interval[1]:.4g}){where}",
                "",
            ]
        if group.refusal:
            lines += [f"**{group.refusal}**", ""]
        if group.curve or group.size_data:
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
    return "\n".join(lines).rstrip() + "\n"


def _law(group: GroupFit) -> str:
    if group.size_data:
        law = group.size_data
        (a_lo, a_hi), (b_lo, b_hi) = law.exponent_intervals["alpha"], law.exponent_intervals["beta"]
        return (
            f"L = {law.irreducible:.4g} + {law.a:.4g}·n^-{law.alpha:.3f} + {law.b:.4g}·d^-{law.beta:.3f} "
            f"(α {a_lo:.2f} to {a_hi:.2f}, β {b_lo:.2f} to {b_hi:.2f} at {law.level:.0%}); best size ∝ C^"
            f"{law.exponents()['size']:.2f}; fitted to {law.window}, noise {law.noise:.1%}"
        )
    if group.curve is None:
        return "No law."
    votes: dict[str, float] = {}
    for member in group.curve.members:
        votes[member.form] = votes.get(member.form, 0.0) + member.weight
    said = ", ".join(f"{FORMS[f].formula} {w:.0%}" for f, w in sorted(votes.items(), key=lambda v: -v[1]) if w >= 0.01)
    return f"A mixture, by backtest: {said}; noise {group.curve.noise:.1%}"


def _crossing(x: Crossover) -> str:
    (lo, hi), (first, last) = x.interval, x.searched or (0.0, np.inf)
    return f"{'before ' if lo <= first else ''}{lo:.2g} to {'beyond ' if hi >= last else ''}{hi:.2g}"


def _coverage(group: GroupFit) -> str:
    if group.size_data:
        tests = group.size_data.backtests
        share, count, level = tests.coverage, f"{len(tests.errors)} predictions", tests.level
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
    for k, group in enumerate(fit.groups):
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
            lo, hi = group.size_data.interval([b[0] for b in best], [b[1] for b in best])
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
