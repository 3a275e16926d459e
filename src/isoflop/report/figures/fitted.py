"""The figures of a fitted table: points with their laws, residuals, isoFLOP profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.laws import GroupFit, TableFit
from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color, family_symbol, ramp_color, ramp_legend
from isoflop.report.law import FamilyLaw, family_laws
from isoflop.report.rows import Answer, Metric, Row, metric_of
from isoflop.report.text import number, quantity


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
        caption=f"On the dashed line the law is exact; half of the points are within {typical} % of it.",
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


# IsoFLOP profiles: at each budget, the loss of every size, so that the best size is the bottom of a valley.


KEY, TITLE = "profiles", "IsoFLOP profiles: which size is best at each budget"
X = Axis("size (training FLOPs per image)", "log")


def profiles(rows: Sequence[Row], answer: Answer) -> Figure:
    """One panel a family, one valley a budget: measured (at the best learning rate) and by the law."""
    runs = table.measured(rows, "ladder")
    names = [family for family in table.families(rows, answer) if _compares_sizes(table.of_family(runs, family))]
    if not names:
        return Figure.missing(KEY, TITLE, "No family has runs of two sizes at one budget.")
    budgets = table.rungs(runs)
    laws, metric = family_laws(answer), metric_of(answer)
    legend = ramp_legend([quantity(budget) for budget in budgets])
    panels = [_panel(family, table.of_family(runs, family), budgets, laws.get(family), metric) for family in names]
    panels[0] = replace(panels[0], series=(*legend, *panels[0].series))
    drawn = " Dotted lines are the law at the same budget." if laws else ""
    return Figure(
        key=KEY,
        title=TITLE,
        caption="Every line joins runs of one budget at their best learning rate; a ring marks the best size measured."
        + drawn,
        alt=_alt(names, runs, metric),
        panels=tuple(panels),
        height=400 if len(panels) <= 3 else 700,
        share_y=True,
        legend_title="budget (FLOPs):",
    )


def _compares_sizes(runs: Sequence[Row]) -> bool:
    return len({(table.rung(row), row["flops_per_image"]) for row in runs}) > len(table.rungs(runs))


def _panel(family: str, runs: list[Row], budgets: list[float], law: FamilyLaw | None, metric: Metric) -> Panel:
    series: list[Series] = []
    for position, budget in enumerate(budgets):
        points = [row for row in runs if table.rung(row) == budget]
        points = sorted(
            table.best_by(points, "model", "flops_per_image"), key=lambda row: float(row["flops_per_image"])
        )
        color, group = ramp_color(position, len(budgets)), quantity(budget)
        if law is not None and points:
            n = np.geomspace(points[0]["flops_per_image"] / 1.2, points[-1]["flops_per_image"] * 1.2, 40)
            series.append(Series("line", n, law.loss(n, budget / n), group=group, color=color, dash="dot", width=1.3))
        sizes = [row["flops_per_image"] for row in points]
        losses = [row["heldout_loss"] for row in points]
        series.append(Series("line", sizes, losses, group=group, color=color, width=1.5, opacity=0.55))
        series.append(
            Series(
                "points",
                sizes,
                losses,
                group=group,
                color=color,
                size=7,
                notes=[table.describe(row, metric) for row in points],
            )
        )
        if points:
            lowest = min(points, key=lambda row: float(row["heldout_loss"]))
            series.append(
                Series(
                    "points",
                    [lowest["flops_per_image"]],
                    [lowest["heldout_loss"]],
                    group=group,
                    color=color,
                    symbol="circle-open",
                    size=13,
                )
            )
    return Panel(X, Axis(metric.axis, "log"), tuple(series), title=family)


def _alt(names: Sequence[str], runs: Sequence[Row], metric: Metric) -> str:
    parts = []
    for family in names:
        best = table.envelope(table.of_family(runs, family))
        valley = ", ".join(
            f"{row['model']} ({number(row['heldout_loss'])}) at {quantity(table.rung(row))}" for row in best
        )
        parts.append(f"{family}: best size by budget {valley}")
    return f"{metric.heading} against size, one line a budget. " + "; ".join(parts) + "."
