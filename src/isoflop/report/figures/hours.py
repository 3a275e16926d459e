"""Loss against the time that the runs took: what compute in FLOPs hides when one family runs slower than another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.metric import metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import duration, number, time_unit
from isoflop.report.theme import family_color, family_symbol

KEY = "hours"


def hours(rows: Sequence[Row], answer: Answer) -> Figure:
    """Every finished run by its wall time, and for each family the best loss that any run of that time or less had."""
    runs = [row for row in table.measured(rows) if table.positive(row, "seconds")]
    metric = metric_of(answer)
    title = f"{metric.capital} against run time"
    if not runs:
        return Figure.missing(KEY, title, "No finished run has recorded its time.")
    scale, unit = time_unit(max(row["seconds"] for row in runs))
    series: list[Series] = []
    parts: list[str] = []
    for position, family in enumerate(table.families(rows, answer)):
        own = sorted(table.of_family(runs, family), key=lambda row: (row["seconds"], row["heldout_loss"]))
        if not own:
            continue
        marks: dict[str, Any] = {"group": family, "color": family_color(position)}
        front: list[Row] = []
        for row in own:
            if not front or row["heldout_loss"] < front[-1]["heldout_loss"]:
                front.append(row)
        for chosen, faint in ((own, True), (front, False)):
            series.append(
                Series(
                    "points",
                    [row["seconds"] / scale for row in chosen],
                    [row["heldout_loss"] for row in chosen],
                    name="" if faint else family,
                    symbol=family_symbol(position),
                    size=4.5 if faint else 8,
                    opacity=0.35 if faint else 1.0,
                    notes=[f"{table.describe(row, metric)}, {duration(row['seconds'])}" for row in chosen],
                    **marks,
                )
            )
        steps = [row["seconds"] / scale for row in front]
        series.append(Series("line", steps, [row["heldout_loss"] for row in front], width=1.5, **marks))
        last = front[-1]
        parts.append(f"{family} reached {number(last['heldout_loss'])} in {duration(last['seconds'])}")
    return Figure(
        key=KEY,
        title=title,
        caption="Wall time of each run on its device; lines join those that no shorter one of their family beat.",
        alt=f"{metric.heading} against run time, both logarithmic. " + "; ".join(parts) + ".",
        panels=(Panel(Axis(f"run time (device-{unit})", "log"), Axis(metric.axis, "log"), tuple(series)),),
        height=420,
    )
