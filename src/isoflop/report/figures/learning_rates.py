"""How much a wrong learning rate costs at every size, and whether the search has enclosed the right one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.metric import Metric, metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import quantity
from isoflop.report.theme import ramp_color

KEY, TITLE = "learning-rates", "Learning-rate search: what a wrong rate costs"
X = Axis("learning rate", "log")
CEILING = 60.0
"""Percent: what lies higher is a run that failed to learn, and would flatten all others."""


def learning_rates(rows: Sequence[Row], answer: Answer) -> Figure:
    """One panel a family, one line a model and budget that was tried at two learning rates or more."""
    runs = [row for row in table.measured(rows) if table.positive(row, "learning_rate")]
    groups: dict[str, dict[tuple[str, float], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in runs:
        groups[str(row["family"])][(str(row.get("model")), table.rung(row))].append(row)
    searched = {
        family: {key: points for key, points in lines.items() if len({row["learning_rate"] for row in points}) > 1}
        for family, lines in groups.items()
    }
    names = [family for family in table.families(rows, answer) if searched.get(family)]
    if not names:
        return Figure.missing(KEY, TITLE, "No size was trained at two or more learning rates.")
    edges = sum(_on_edge(points) for family in names for points in searched[family].values())
    total = sum(len(searched[family]) for family in names)
    highest = max(max(_excess(points)) for family in names for points in searched[family].values())
    limits = (-0.04 * CEILING, CEILING) if highest > CEILING else None
    metric = metric_of(answer)
    y = Axis(f"{metric.name} above the best rate's (%)", limits=limits)
    caption = "One line a model and budget, from the smallest models (yellow) to the largest (blue)."
    caption += f" In {edges} of {total} searches the best rate lies on the edge of the grid"
    caption += f"; what is more than {CEILING:.0f} % above the best is cut off." if limits else "."
    return Figure(
        key=KEY,
        title=TITLE,
        caption=caption,
        alt=f"{metric.capital} above the best rate's against learning rate for {total} pairs of model and budget in "
        f"{len(names)} families; the best rate lies inside the grid in {total - edges} of them.",
        panels=tuple(_panel(family, searched[family], y, metric) for family in names),
        height=380 if len(names) <= 3 else 680,
        share_y=True,
        legend=False,
    )


def _on_edge(points: Sequence[Row]) -> bool:
    rates = [row["learning_rate"] for row in points]
    best = min(points, key=lambda row: float(row["heldout_loss"]))["learning_rate"]
    return bool(best in (min(rates), max(rates)))


def _excess(points: Sequence[Row]) -> list[float]:
    best = min(row["heldout_loss"] for row in points)
    return [100 * (row["heldout_loss"] / best - 1) for row in points]


def _panel(family: str, lines: dict[tuple[str, float], list[Row]], y: Axis, metric: Metric) -> Panel:
    sizes = sorted({float(row["flops_per_image"]) for points in lines.values() for row in points})
    series: list[Series] = []
    for (model, budget), points in lines.items():
        # One point a rate: the best of its repetitions.
        points = sorted(table.best_by(points, "learning_rate"), key=lambda row: float(row["learning_rate"]))
        color = ramp_color(sizes.index(float(points[0]["flops_per_image"])), len(sizes))
        rates, excess = [row["learning_rate"] for row in points], _excess(points)
        group = f"{family} {model} {budget:g}"
        notes = [f"at {quantity(budget)} FLOPs: {table.describe(row, metric)}" for row in points]
        series.append(Series("line", rates, excess, group=group, color=color, width=1.4, opacity=0.8))
        series.append(Series("points", rates, excess, group=group, color=color, size=6, notes=notes))
    return Panel(X, y, tuple(series), title=family)
