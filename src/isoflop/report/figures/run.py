"""The figures of a single run: its loss, its learning rate and its speed over the images that it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.figures.curves import finite_pairs, marks
from isoflop.report.text import number, quantity

X = Axis("images seen", "log")


def run_loss(history: Mapping[str, Any], name: str) -> Figure:
    """Training loss, held-out loss where it was measured, restarts and spikes; `history` is what `Tail.curve` gives."""
    key, title = "loss", "Loss over the images seen"
    images, loss = finite_pairs(history, "train_loss")
    if len(images) < 2:
        return Figure.missing(key, title, "The run has not recorded a loss yet.")
    series = [Series("line", images, loss, name="training (smoothed)", color="family0", width=1.8)]
    at, heldout = finite_pairs(history, "heldout_loss")
    if at.size:
        notes = [f"held-out loss {number(v)} after {quantity(x)} images" for x, v in zip(at, heldout, strict=True)]
        series.append(
            Series("points", at, heldout, name="held-out", color="family1", symbol="square", size=8, notes=notes)
        )
    series += marks(history, name)
    last = f"; held-out {number(float(heldout[-1]))}" if heldout.size else ""
    return Figure(
        key=key,
        title=title,
        caption="Training losses are means over equal spans of the axis.",
        alt=f"Training loss {number(float(loss[-1]))} after {quantity(float(images[-1]))} images{last}.",
        panels=(Panel(X, Axis("loss", "log"), tuple(series)),),
        height=420,
    )


def run_pace(pace: Mapping[str, Sequence[Any]]) -> Figure:
    """The learning rate and the speed; `pace` is what `Tail.pace` gives."""
    key, title = "pace", "Learning rate and speed"
    panels = []
    for cell, axis, heading in (
        ("learning_rate", "learning rate", "Learning rate"),
        ("images_per_second", "images per second", "Speed"),
    ):
        points = [(x, y) for x, y in zip(pace["images"], pace[cell], strict=True) if table.finite(y)]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            line = Series("line", x, y, color="family0", width=1.8)
            panels.append(Panel(X, Axis(axis, limits=(0.0, 1.08 * max(y))), (line,), heading))
    if not panels:
        return Figure.missing(key, title, "The run has not recorded its learning rate yet.")
    return Figure(
        key=key,
        title=title,
        caption="The speed is that between two points of the line, on the run's device.",
        alt="Learning rate and images per second over the images seen.",
        panels=tuple(panels),
        columns=2,
        height=340,
        legend=False,
    )
