"""How far a model's attention looks, by depth."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from isoflop.report.figure import Axis, Figure, Panel, Series, ramp_color
from isoflop.report.text import number


def attention_distance(distances: Sequence[Sequence[float]]) -> Figure:
    """The attention distance of every head (layers of heads, in pixels) against depth."""
    if not distances:
        return Figure.missing("attention-distance", "How far attention looks", "The model has no attention.")
    series = [
        Series(
            "points",
            [str(depth)] * len(heads),
            sorted(heads),
            color=ramp_color(depth - 1, len(distances)),
            size=7,
            notes=[f"layer {depth}: {number(v, 1)} px" for v in sorted(heads)],
        )
        for depth, heads in enumerate(distances, 1)
    ]
    layers = [str(depth) for depth in range(1, len(distances) + 1)]
    means = [fmean(heads) for heads in distances]
    series.append(Series("line", layers, means, name="mean over heads", color="ink", width=1.5))
    return Figure(
        key="attention-distance",
        title="How far attention looks",
        caption="One marker a head: the mean distance between a patch and what it attends to.",
        alt=f"Mean attention distance by layer, in pixels: {', '.join(number(m, 1) for m in means)}.",
        panels=(Panel(Axis("layer", "category", tuple(layers)), Axis("attention distance (pixels)"), tuple(series)),),
        height=420,
    )
