"""How the best size, the best number of images and the best learning rate change with compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.law import Array, FamilyLaw, family_laws
from isoflop.report.metric import Metric, metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import number, quantity
from isoflop.report.theme import family_color, family_symbol

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
            if table.finite(target) and table.positive(entry, cell):
                drawn[cell].append(Series("points", [target], [entry[cell]], symbol="diamond-open", size=10, **look))
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
