"""The compute and the time of a study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color, family_symbol, ramp_color, ramp_legend
from isoflop.report.rows import Answer, Metric, Row, metric_of
from isoflop.report.savings import own_cost, price_per_hour, total_cost
from isoflop.report.text import duration, number, quantity, time_unit

KEY, TITLE = "cost", "Where the compute went"


def cost(rows: Sequence[Row], answer: Answer) -> Figure:
    """Stacked bars, one a budget: the training FLOPs and the time of each family's runs, failed ones too; steps of a
    shared trunk count once."""
    spent = [row for row in rows if table.positive(row, "train_flops") and table.positive(row, "seconds")]
    if not spent:
        return Figure.missing(KEY, TITLE, "No run has recorded what it cost.")
    budgets = table.rungs(spent)
    names = tuple(quantity(budget) for budget in budgets)
    total, seconds = total_cost(spent)
    unit_seconds, unit = time_unit(seconds)
    costs: dict[tuple[str, float], tuple[float, float]] = {}
    for row in spent:
        key = str(row.get("family")), table.rung(row)
        flops_before, seconds_before = costs.get(key, (0.0, 0.0))
        own_flops, own_seconds = own_cost(row)
        costs[key] = flops_before + own_flops, seconds_before + own_seconds
    flops: list[Series] = []
    hours: list[Series] = []
    for position, family in enumerate(table.families(rows, answer)):
        for k, (series, cell, scale) in enumerate(((flops, "train_flops", 1.0), (hours, "seconds", 1 / unit_seconds))):
            sums = [scale * costs.get((family, budget), (0.0, 0.0))[k] for budget in budgets]
            series.append(
                Series(
                    "bar",
                    names,
                    sums,
                    name=family if series is flops else "",
                    group=family,
                    color=family_color(position),
                    notes=[
                        f"{family} at {name} FLOPs: {_amount(v / scale, cell)}"
                        for name, v in zip(names, sums, strict=True)
                    ],
                )
            )
    x = Axis("budget of the run (FLOPs)", "category", names)
    return Figure(
        key=KEY,
        title=TITLE,
        caption=f"All {len(spent)} runs together: {quantity(total)} FLOPs in {duration(seconds)} of device time"
        + _money(answer, seconds),
        alt=f"Stacked bars of training FLOPs and time by budget and family; in all {quantity(total)} FLOPs and "
        f"{duration(seconds)}.",
        panels=(
            Panel(x, Axis("training FLOPs"), tuple(flops), title="Compute"),
            Panel(x, Axis(f"device-{unit}"), tuple(hours), title="Time"),
        ),
        columns=2,
        height=340,
        stacked=True,
    )


def _money(answer: Answer, seconds: float) -> str:
    """The end of the caption: what that has cost, where the study says what a device-hour does."""
    price = price_per_hour(answer)
    if price is None:
        return "."
    return f", which cost {quantity(price * seconds / 3600, 3)} at {quantity(price, 3)} an hour."


def _amount(value: float, cell: str) -> str:
    return duration(value) if cell == "seconds" else f"{quantity(value)} training FLOPs"


# Loss against the time that the runs took: what compute in FLOPs hides when one family runs slower than another.


HOURS = "hours"


def hours(rows: Sequence[Row], answer: Answer) -> Figure:
    """Every finished run by its wall time, and for each family the best loss that any run of that time or less had."""
    runs = [row for row in table.measured(rows) if table.positive(row, "seconds")]
    metric = metric_of(answer)
    title = f"{metric.capital} against run time"
    if not runs:
        return Figure.missing(HOURS, title, "No finished run has recorded its time.")
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
        key=HOURS,
        title=title,
        caption="Wall time of each run on its device; lines join those that no shorter one of their family beat.",
        alt=f"{metric.heading} against run time, both logarithmic. " + "; ".join(parts) + ".",
        panels=(Panel(Axis(f"run time (device-{unit})", "log"), Axis(metric.axis, "log"), tuple(series)),),
        height=420,
    )


# Sample efficiency: what each size makes of the images it has seen.


EFFICIENCY, EFFICIENCY_TITLE = "efficiency", "Sample efficiency by size"
X = Axis("images seen", "log")


def efficiency(rows: Sequence[Row], answer: Answer) -> Figure:
    """One panel a family, one line a model: the loss of its best run at each number of images."""
    runs = table.best_by(table.measured(rows), "family", "model", "flops_per_image", "budget")
    sizes: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in runs:
        sizes[str(row["family"])][float(row["flops_per_image"])].append(row)
    names = [f for f in table.families(rows, answer) if any(len(points) > 1 for points in sizes[f].values())]
    if not names:
        return Figure.missing(
            EFFICIENCY, EFFICIENCY_TITLE, "No model has been trained on two or more numbers of images."
        )
    metric = metric_of(answer)
    every = sorted({size for family in names for size in sizes[family]})
    legend = ramp_legend([quantity(size, 3) for size in every])
    panels = []
    for family in names:
        series: list[Series] = []
        for size in sorted(sizes[family]):
            points = sorted(sizes[family][size], key=lambda row: float(row["images"]))
            color = ramp_color(every.index(size), len(every))
            group = quantity(size, 3)
            x, y = [row["images"] for row in points], [row["heldout_loss"] for row in points]
            notes = [f"{quantity(size)} FLOPs an image: {table.describe(row, metric)}" for row in points]
            series.append(Series("line", x, y, group=group, color=color, width=1.6))
            series.append(Series("points", x, y, group=group, color=color, size=6, notes=notes))
        panels.append(Panel(X, Axis(metric.axis, "log"), (*legend, *series), title=family))
        legend = ()
    return Figure(
        key=EFFICIENCY,
        title=EFFICIENCY_TITLE,
        caption="One line a model, from the smallest (yellow) to the largest (blue). Where a line lies lower, the model"
        " has made more of the same images.",
        alt=_alt(names, sizes, metric),
        panels=tuple(panels),
        height=380 if len(names) <= 3 else 680,
        share_y=True,
        legend_title="size (FLOPs per image):",
    )


def _alt(names: Sequence[str], sizes: dict[str, dict[float, list[Row]]], metric: Metric) -> str:
    parts = []
    for family in names:
        last = [max(points, key=lambda row: float(row["images"])) for _, points in sorted(sizes[family].items())]
        shown = ", ".join(f"{r['model']} {number(r['heldout_loss'])} after {quantity(r['images'])}" for r in last)
        parts.append(f"{family}: {shown}")
    return f"{metric.heading} against images seen, one line a model. " + "; ".join(parts) + "."
