"""Sample efficiency: what each size makes of the images it has seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.metric import Metric, metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import number, quantity
from isoflop.report.theme import ramp_color

KEY, TITLE = "efficiency", "Sample efficiency by size"
X = Axis("images seen", "log")


def efficiency(rows: Sequence[Row], answer: Answer) -> Figure:
    """One panel a family, one line a model: the loss of its best run at each number of images."""
    runs = table.best_by(table.measured(rows), "family", "model", "flops_per_image", "budget")
    sizes: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in runs:
        sizes[str(row["family"])][float(row["flops_per_image"])].append(row)
    names = [f for f in table.families(rows, answer) if any(len(points) > 1 for points in sizes[f].values())]
    if not names:
        return Figure.missing(KEY, TITLE, "No model has been trained on two or more numbers of images.")
    metric = metric_of(answer)
    every = sorted({size for family in names for size in sizes[family]})
    panels = []
    for family in names:
        series: list[Series] = []
        for size in sorted(sizes[family]):
            points = sorted(sizes[family][size], key=lambda row: float(row["images"]))
            color = ramp_color(every.index(size), len(every))
            group = f"{family} {size:g}"
            x, y = [row["images"] for row in points], [row["heldout_loss"] for row in points]
            notes = [f"{quantity(size)} FLOPs an image: {table.describe(row, metric)}" for row in points]
            series.append(Series("line", x, y, group=group, color=color, width=1.6))
            series.append(Series("points", x, y, group=group, color=color, size=6, notes=notes))
        panels.append(Panel(X, Axis(metric.axis, "log"), tuple(series), title=family))
    return Figure(
        key=KEY,
        title=TITLE,
        caption="One line a model, from the smallest (yellow) to the largest (blue). Where a line lies lower, the model"
        " has made more of the same images.",
        alt=_alt(names, sizes, metric),
        panels=tuple(panels),
        height=380 if len(names) <= 3 else 680,
        share_y=True,
        legend=False,
    )


def _alt(names: Sequence[str], sizes: dict[str, dict[float, list[Row]]], metric: Metric) -> str:
    parts = []
    for family in names:
        last = [max(points, key=lambda row: float(row["images"])) for _, points in sorted(sizes[family].items())]
        shown = ", ".join(f"{r['model']} {number(r['heldout_loss'])} after {quantity(r['images'])}" for r in last)
        parts.append(f"{family}: {shown}")
    return f"{metric.heading} against images seen, one line a model. " + "; ".join(parts) + "."
