"""Laws from any table of results: what `isoflop fit TABLE.csv --x … --y … [--budget …]` computes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import LawError
from isoflop.laws.audit import Finding, audit_curve, audit_size_data
from isoflop.laws.checks import fault, tells_nothing
from isoflop.laws.columns import (
    Columns,
    Source,
    as_error,
    name_column,
    positive_column,
    read_columns,
    refuse_duplicates,
)
from isoflop.laws.compare import Comparison, compare
from isoflop.laws.curve import CurveLaw, fit_curve
from isoflop.laws.records import Record
from isoflop.laws.size_data import SizeDataLaw, fit_size_data
from isoflop.laws.size_data_fit import check_table
from isoflop.laws.solve import Array

AUDIT_COLUMNS = ("learning_rate", "warmup", "schedule", "horizon")
DRAWN = 2000
"""Points of a group that a picture shows at most."""


@dataclass(frozen=True)
class Prediction(Record):
    """What a law says at `budget`: the value, its interval, and for two axes the best size `n` and images `d`."""

    budget: float
    value: float
    interval: tuple[float, float]
    level: float
    n: float | None = None
    d: float | None = None
    n_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class GroupFit(Record):
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
class TableFit(Record):
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
        from isoflop.laws.present import markdown, picture, svg  # which present this class, and so import it

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
        columns, source = table, Source("table")
    if len(x) not in (1, 2):
        raise LawError(f"give one column as x (a curve) or two (size and images), not {len(x)}")
    if len({*x, y}) < len(x) + 1:
        raise LawError(f"a column is given twice: x {' and '.join(x)}, y {y}")
    if budget is not None and (wrong := fault(budget)):
        raise LawError(f"the budget must be {wrong}, not {budget:g}")
    if not 0 < level < 1:
        raise LawError(f"the level must lie between 0 and 1, not {level:g}")
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
            refusal = f"no answer at {budget:g}: the points begin at {law.x_range[0]:g}, what was before is not known"
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
    return f"no answer at {budget:g}: the {level:.0%} interval spans a factor of {factor}, these points cannot tell"
