"""IsoFLOP profiles: at each budget, the loss of every size, so that the best size is the bottom of a valley."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.law import FamilyLaw, family_laws
from isoflop.report.metric import Metric, metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import number, quantity
from isoflop.report.theme import ramp_color

KEY, TITLE = "profiles", "IsoFLOP profiles: which size is best at each budget"
X = Axis("size (training FLOPs per image)", "log")


def profiles(rows: Sequence[Row], answer: Answer) -> Figure:
    """One panel a family, one valley a budget: measured (at the best learning rate) and by the law."""
    runs = table.measured(rows, "ladder")
    if not runs:
        return Figure.missing(KEY, TITLE, "No run of the ladder has finished, so no size can be compared with another.")
    budgets = table.rungs(runs)
    laws, metric = family_laws(answer), metric_of(answer)
    names = [family for family in table.families(rows, answer) if table.of_family(runs, family)]
    panels = [
        _panel(family, table.of_family(runs, family), budgets, laws.get(family), names[0], metric) for family in names
    ]
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


def _panel(
    family: str, runs: list[Row], budgets: list[float], law: FamilyLaw | None, legend_from: str, metric: Metric
) -> Panel:
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
                # The legend is shared by all panels, so only the first one with every budget feeds it.
                name=group if family == legend_from else "",
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
