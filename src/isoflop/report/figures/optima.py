"""How the best size and the best number of images grow with compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.law import family_laws
from isoflop.report.rows import Answer, Row
from isoflop.report.text import number, quantity
from isoflop.report.theme import family_color, family_symbol

KEY, TITLE = "optima", "Best size and best number of images against compute"
X = Axis("training compute (FLOPs)", "log")


def optima(rows: Sequence[Row], answer: Answer) -> Figure:
    """Two panels, size and images: the best run of each budget, and where the law puts the optimum."""
    runs = table.measured(rows, "ladder")
    laws = family_laws(answer)
    if not runs and not laws:
        return Figure.missing(KEY, TITLE, "No run of the ladder has finished, so nothing is known about the best size.")
    target = answer.get("target_flops")
    budgets = table.rungs(runs) + ([float(target)] if table.finite(target) else [])
    compute = np.geomspace(min(budgets), max(max(budgets), 1.001 * min(budgets)), 40)
    size: list[Series] = []
    images: list[Series] = []
    exponents: list[str] = []
    for position, family in enumerate(table.families(rows, answer)):
        color, best = family_color(position), table.envelope(table.of_family(runs, family))
        law = laws.get(family)
        if law is not None:
            n, d = law.optimum(compute)
            size.append(Series("line", compute, n, group=family, color=color))
            images.append(Series("line", compute, d, group=family, color=color))
            exponents.append(f"{family} {law.exponents()}")
        at = [table.rung(row) for row in best]
        notes = [table.describe(row) for row in best]
        marks: dict[str, Any] = {
            "group": family,
            "color": color,
            "symbol": family_symbol(position),
            "size": 9.0,
            "notes": notes,
        }
        size.append(Series("points", at, [row["flops_per_image"] for row in best], name=family, **marks))
        images.append(Series("points", at, [row["images"] for row in best], **marks))
        entry = (answer.get("families") or {}).get(family) or {}
        if table.finite(target):
            chosen: dict[str, Any] = {"group": family, "color": color, "symbol": "diamond-open", "size": 10.0}
            for series, cell in ((size, "flops_per_image"), (images, "images")):
                if table.positive(entry, cell):
                    series.append(Series("points", [float(target)], [float(entry[cell])], **chosen))
    caption = "Markers are the best run of each budget, open diamonds what the study would train at the target"
    caption += ", lines the optimum of each fitted law." if laws else "."
    if exponents:
        caption += " Exponents of size and of images in compute: " + "; ".join(exponents) + "."
    return Figure(
        key=KEY,
        title=TITLE,
        caption=caption,
        alt=_alt(rows, runs, answer),
        panels=(
            Panel(X, Axis("size (training FLOPs per image)", "log"), tuple(size), title="Best size"),
            Panel(X, Axis("images seen", "log"), tuple(images), title="Best number of images"),
        ),
        columns=2,
        height=420,
    )


def _alt(rows: Sequence[Row], runs: Sequence[Row], answer: Answer) -> str:
    parts = []
    for family in table.families(rows, answer):
        best = table.envelope(table.of_family(runs, family))
        if best:
            first, last = best[0], best[-1]
            parts.append(f"{family}: from {_point(first)} to {_point(last)}")
    return "Best size and best number of images against compute, all logarithmic. " + "; ".join(parts) + "."


def _point(row: Row) -> str:
    return (
        f"{quantity(row['flops_per_image'])} FLOPs an image and {quantity(row['images'])} images "
        f"(loss {number(row['heldout_loss'])})"
    )
