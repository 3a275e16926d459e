"""How the best size, the best number of images and the best learning rate change with compute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color, family_symbol, ramp_color, ramp_legend
from isoflop.report.law import Array, FamilyLaw, family_laws
from isoflop.report.rows import Answer, Metric, Row, metric_of
from isoflop.report.text import number, quantity

KEY, TITLE = "optima", "Best size, images and learning rate against compute"
X = Axis("training compute (FLOPs)", "log")
PANELS = (
    ("flops_per_image", "size (training FLOPs per image)", "Best size"),
    ("images", "images seen", "Best number of images"),
    ("learning_rate", "learning rate", "Best learning rate"),
)


def optima(rows: Sequence[Row], answer: Answer) -> Figure:
    """A panel each for size, images and learning rate: the best run of each budget, and what the laws say."""
    runs, laws = table.measured(rows, "ladder"), family_laws(answer)
    if not runs:
        return Figure.missing(KEY, TITLE, "No run of the ladder has finished, so nothing is known about the best size.")
    target, metric = answer.get("target_flops"), metric_of(answer)
    budgets = table.rungs(runs) + ([float(target)] if table.finite(target) else [])
    compute = np.geomspace(min(budgets), max(max(budgets), 1.001 * min(budgets)), 40)
    drawn: dict[str, list[Series]] = {cell: [] for cell, _, _ in PANELS}
    for position, family in enumerate(table.families(rows, answer)):
        look: dict[str, Any] = {"group": family, "color": family_color(position)}
        if family in laws:
            for cell, lines in _law_lines(laws[family], compute, look).items():
                drawn[cell] += lines
        best = table.envelope(table.of_family(runs, family))
        entry = (answer.get("families") or {}).get(family) or {}
        for cell, _, _ in PANELS:
            chosen = [row for row in best if table.positive(row, cell)]
            drawn[cell].append(
                Series(
                    "points",
                    [table.rung(row) for row in chosen],
                    [row[cell] for row in chosen],
                    name=family if cell == PANELS[0][0] else "",
                    symbol=family_symbol(position),
                    size=8,
                    notes=[table.describe(row, metric) for row in chosen],
                    **look,
                )
            )
            at = table.compute_of(entry, answer)
            if at is not None and table.positive(entry, cell):
                drawn[cell].append(Series("points", [at], [entry[cell]], symbol="diamond-open", size=10, **look))
    exponents = [f"{family} {law.exponents()}" for family, law in laws.items() if law.exponents()]
    caption = "Markers are the best run of each budget, open diamonds what the study would train at the target"
    caption += ", lines the fitted laws and bands their bootstrap intervals." if laws else "."
    if exponents:
        caption += " Exponents of size and of images in compute: " + "; ".join(exponents) + "."
    return Figure(
        key=KEY,
        title=TITLE,
        caption=caption,
        alt=_alt(rows, runs, answer, metric),
        panels=tuple(Panel(X, Axis(unit, "log"), tuple(drawn[cell]), title) for cell, unit, title in PANELS),
        height=400,
    )


def _law_lines(law: FamilyLaw, compute: Array, look: dict[str, Any]) -> dict[str, list[Series]]:
    values = (*law.optimum(compute), law.learning_rate(compute))
    lines = {cell: [Series("line", compute, v, **look)] for (cell, _, _), v in zip(PANELS, values, strict=True)}
    for (cell, _, _), (low, high) in zip(PANELS, law.optimum_bands(compute) or (), strict=False):
        lines[cell].insert(0, Series("band", compute, lower=low, upper=high, opacity=0.12, **look))
    return lines


def _alt(rows: Sequence[Row], runs: Sequence[Row], answer: Answer, metric: Metric) -> str:
    parts = []
    for family in table.families(rows, answer):
        best = table.envelope(table.of_family(runs, family))
        if best:
            first, last = best[0], best[-1]
            parts.append(f"{family}: from {_point(first, metric)} to {_point(last, metric)}")
    return "Best size and best number of images against compute, all logarithmic. " + "; ".join(parts) + "."


def _point(row: Row, metric: Metric) -> str:
    return (
        f"{quantity(row['flops_per_image'])} FLOPs an image and {quantity(row['images'])} images "
        f"({metric.short} {number(row['heldout_loss'])})"
    )


# How much a wrong learning rate costs at every size, and whether the search has enclosed the right one.


RATES, RATES_TITLE = "learning-rates", "Learning-rate search: what a wrong rate costs"
RATES_X = Axis("learning rate", "log")
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
        return Figure.missing(RATES, RATES_TITLE, "No size was trained at two or more learning rates.")
    edges = sum(_on_edge(points) for family in names for points in searched[family].values())
    total = sum(len(searched[family]) for family in names)
    highest = max(max(_excess(points)) for family in names for points in searched[family].values())
    limits = (-0.04 * CEILING, CEILING) if highest > CEILING else None
    metric = metric_of(answer)
    lines = [points for family in names for points in searched[family].values()]
    sizes = sorted({float(row["flops_per_image"]) for points in lines for row in points})
    legend = ramp_legend([quantity(size, 3) for size in sizes])
    y = Axis("above the best rate's (%)", limits=limits)
    caption = f"{metric.capital} above that of the best rate: a line for each model and budget, "
    caption += "from the smallest models (yellow) to the largest (blue)."
    caption += f" In {edges} of {total} searches the best rate is at the edge of the grid"
    caption += f"; what is more than {CEILING:.0f} % above the best is cut off." if limits else "."
    panels = [_panel(family, searched[family], y, metric, sizes, () if i else legend) for i, family in enumerate(names)]
    return Figure(
        key=RATES,
        title=RATES_TITLE,
        caption=caption,
        alt=f"{metric.capital} above the best rate's against learning rate for {total} pairs of model and budget in "
        f"{len(names)} families; the best rate is inside the grid in {total - edges} of them.",
        panels=tuple(panels),
        height=380 if len(names) <= 3 else 680,
        share_y=True,
        legend_title="size (FLOPs per image):",
    )


def _on_edge(points: Sequence[Row]) -> bool:
    rates = [row["learning_rate"] for row in points]
    best = min(points, key=lambda row: float(row["heldout_loss"]))["learning_rate"]
    return bool(best in (min(rates), max(rates)))


def _excess(points: Sequence[Row]) -> list[float]:
    best = min(row["heldout_loss"] for row in points)
    return [100 * (row["heldout_loss"] / best - 1) for row in points]


def _panel(
    family: str,
    lines: dict[tuple[str, float], list[Row]],
    y: Axis,
    metric: Metric,
    sizes: list[float],
    legend: tuple[Series, ...],
) -> Panel:
    series = [*legend]
    for (_, budget), points in lines.items():
        # One point a rate: the best of its repetitions.
        points = sorted(table.best_by(points, "learning_rate"), key=lambda row: float(row["learning_rate"]))
        size = float(points[0]["flops_per_image"])
        color = ramp_color(sizes.index(size), len(sizes))
        rates, excess = [row["learning_rate"] for row in points], _excess(points)
        group = quantity(size, 3)
        notes = [f"at {quantity(budget)} FLOPs: {table.describe(row, metric)}" for row in points]
        series.append(Series("line", rates, excess, group=group, color=color, width=1.4, opacity=0.8))
        series.append(Series("points", rates, excess, group=group, color=color, size=6, notes=notes))
    return Panel(RATES_X, y, tuple(series), title=family)
