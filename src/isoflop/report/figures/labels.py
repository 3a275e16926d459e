"""Loss against labelled images: what more would bring, and with how many one family overtakes another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color, family_symbol
from isoflop.report.rows import Answer, Row, metric_of
from isoflop.report.text import quantity

KEY = "labels"


def labels(rows: Sequence[Row], answer: Answer) -> Figure:
    """The runs on shares of the images (`study.images`), the law of each family to twice the images, and crossings."""
    metric = metric_of(answer)
    title = f"{metric.capital} against labelled images"
    found = answer.get("labels") or {}
    everyone = table.families(rows, answer)
    series: list[Series] = []
    parts: list[str] = []
    budget = None
    for family, entry in (found.get("families") or {}).items():
        position = everyone.index(family) if family in everyone else len(everyone)
        look = {"group": family, "color": family_color(position)}
        images, loss = (list(column) for column in zip(*entry["points"], strict=True))
        law, budget = entry["law"], entry["budget"]
        series.append(Series("points", images, loss, name=family, symbol=family_symbol(position), size=8, **look))
        line = np.geomspace(min(images), 2 * max(images), 40)
        expected = np.exp(law["level"] - law["slope"] * (np.log(line) - law["centre"]))
        series.append(Series("line", line.tolist(), expected.tolist(), width=1.5, **look))
        ratio, ends = entry["twice"]["loss_ratio"], entry["twice"]["interval"]
        low, high = (f"{100 * (end - 1):+.0f}" for end in ends)
        parts.append(f"{family}: twice the images change the loss by {100 * (ratio - 1):+.0f} % ({low} to {high} %)")
    if not series:
        return Figure.missing(KEY, title, "No runs on shares of the images (`study.images`).")
    for crossing in found.get("crossovers") or ():
        parts.append(
            f"{crossing['later']} overtakes {crossing['earlier']} at {quantity(crossing['images'])} labelled images "
            f"({'–'.join(map(quantity, crossing['interval']))}, "
            f"in {crossing['probability']:.0%} of draws)"
        )
    at = f" Each run has {quantity(budget)} training FLOPs." if budget else ""
    return Figure(
        key=KEY,
        title=title,
        caption=f"{'; '.join(parts).replace('-', '−')}.{at} Lines are power laws, drawn to twice the images.",
        alt=f"{metric.heading} against the number of labelled images, both logarithmic. " + "; ".join(parts) + ".",
        panels=(Panel(Axis("labelled images", "log"), Axis(metric.axis, "log"), tuple(series)),),
        height=420,
    )
