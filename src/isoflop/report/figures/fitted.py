"""The figures of a fitted table: its points with their laws, and how well the laws describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.laws import GroupFit, TableFit
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.text import number, quantity
from isoflop.report.theme import family_color, family_symbol


def fitted_curves(fit: TableFit, level: float) -> Figure:
    """Every point, each group's law with its interval, and the predictions; both axes are logarithmic."""
    x, y = column_title(fit.x[0]), column_title(fit.unit)
    series: list[Series] = []
    for position, group in enumerate(fit.groups):
        look: dict[str, Any] = {"group": group.name, "color": family_color(position)}
        at, values = points(group)
        if group.curve is not None:
            end = max(1.5 * float(at.max()), fit_budget(group))
            grid = np.geomspace(float(at.min()), end, 80)
            lower, upper = group.curve.interval(grid, level)
            series.append(Series("band", grid, lower=lower, upper=upper, opacity=0.13, **look))
            series.append(Series("line", grid, group.curve.predict(grid), **look))
        notes = [f"{group.name}: {quantity(v, 3)} at {quantity(a, 3)}" for a, v in zip(at, values, strict=True)]
        marks: dict[str, Any] = {"symbol": family_symbol(position), "size": 8.0, "notes": notes}
        series.append(Series("points", at, values, name=group.name, **marks, **look))
        if group.prediction is not None:
            p = group.prediction
            told = f"{group.name}, predicted at {quantity(p.budget, 3)}: {quantity(p.value, 3)}"
            series.append(
                Series(
                    "points", [p.budget], [p.value], lower=[p.interval[0]], upper=[p.interval[1]],
                    symbol="diamond-open", size=10, notes=[told], **look,
                )
            )  # fmt: skip
    shown = "; ".join(f"{g.name}: {number(points(g)[1].min())} at best, {g.rows} points" for g in fit.groups)
    predicted = " Open diamonds are predictions." if any(g.prediction for g in fit.groups) else ""
    return Figure(
        key="law",
        title=f"{y[:1].upper() + y[1:]} against {x}",
        caption=f"Markers are the rows of the table, lines the fitted laws, bands the {100 * level:.0f} % interval in "
        f"which one more measurement should fall.{predicted}",
        alt=f"{y} against {x}, both logarithmic. {shown}.",
        panels=(Panel(Axis(x, "log"), Axis(y, "log"), tuple(series)),),
        height=500,
    )


def fitted_residuals(fit: TableFit) -> Figure:
    """How far each point lies from its law, in percent, over x."""
    x = column_title(fit.x[0])
    series: list[Series] = []
    off: list[float] = []
    ends: list[float] = []
    for position, group in enumerate(fit.groups):
        if group.curve is None:
            continue
        at, values = points(group)
        percent = 100 * (values / group.curve.predict(at) - 1)
        off += [float(v) for v in percent if np.isfinite(v)]
        ends += [float(at.min()), float(at.max())]
        notes = [f"{group.name}: {number(v, 1)} %" for v in percent]
        series.append(
            Series(
                "points", at, percent, name=group.name, group=group.name, color=family_color(position),
                symbol=family_symbol(position), notes=notes,
            )
        )  # fmt: skip
    if not off:
        return Figure.missing("residuals", "Measured against the law", "No group of the table has a law.")
    series.insert(0, Series("line", [min(ends), max(ends)], [0.0, 0.0], color="muted", dash="dash", width=1.2))
    typical = number(float(np.median(np.abs(off))), 1)
    return Figure(
        key="residuals",
        title="Measured against the law",
        caption=f"On the dashed line the law is exact; half of the points lie within {typical} % of it.",
        alt=f"Difference from the law against {x}; the median is {typical} percent.",
        panels=(Panel(Axis(x, "log"), Axis("measured over law − 1 (%)"), tuple(series)),),
        height=340,
    )


def points(group: GroupFit) -> tuple[Any, Any]:
    """x and y (m,) of a group."""
    both = np.array(group.points, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def fit_budget(group: GroupFit) -> float:
    """Where the group's prediction lies; 0 without one."""
    return group.prediction.budget if group.prediction is not None else 0.0


def column_title(name: str) -> str:
    """The name of a column as the title of an axis."""
    return name.replace("_", " ")


def law_notes(groups: Sequence[GroupFit]) -> list[str]:
    """The warnings and refusals of all groups, each with the group's name."""
    said = [f"{g.name}: {text}" for g in groups for text in (*g.warnings, *([g.refusal] if g.refusal else []))]
    return list(dict.fromkeys(said))
