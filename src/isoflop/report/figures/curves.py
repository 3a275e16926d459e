"""Training curves: the loss of every run, with restarts and spikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, ramp_color
from isoflop.report.rows import Answer, Row
from isoflop.report.text import number, quantity

KEY, TITLE = "curves", "Training curves"
X = Axis("images seen", "log")
Y = Axis("training loss (smoothed)", "log")

Curves = Mapping[str, Mapping[str, Any]]
# All curves together: what the page can hold, and more than a screen can show.
POINTS = 24_000


def curves(rows: Sequence[Row], answer: Answer, histories: Curves) -> Figure:
    """One panel a family, one line a run, coloured by budget; the run of the answer in ink."""
    drawn = [row for row in worth_drawing(rows) if _history(row, histories)]
    if not drawn:
        return Figure.missing(KEY, TITLE, "No run has recorded a training loss yet.")
    budgets = table.rungs(drawn)
    each = int(np.clip(POINTS / len(drawn), 24, 80))
    names = [family for family in table.families(rows, answer) if table.of_family(drawn, family)]
    shown: set[str] = set()
    panels = []
    for family in names:
        series = []
        for row in sorted(table.of_family(drawn, family), key=_legend_order):
            history = _history(row, histories)
            images, loss = thin(*finite_pairs(history), each)
            final = row.get("role") == "final"
            broken = row.get("status") in table.BROKEN
            label = "the answer" if final else "diverged or failed" if broken else quantity(table.rung(row))
            series.append(
                Series(
                    "line",
                    images,
                    loss,
                    name="" if label in shown else label,
                    group=label,
                    color="ink" if final else ramp_color(budgets.index(table.rung(row)), len(budgets)),
                    width=2.4 if final else 1.3,
                    dash="dash" if broken else "solid",
                    opacity=1.0 if final else 0.8,
                    notes=[
                        f"{row.get('model')}, learning rate {quantity(row.get('learning_rate'))}, {row.get('status')}"
                    ],
                )
            )
            shown.add(label)
            for mark in marks(history, f"{row.get('model')}, learning rate {quantity(row.get('learning_rate'))}"):
                series.append(mark if mark.name not in shown else replace(mark, name=""))
                shown.add(mark.name)
        panels.append(Panel(X, Y, tuple(series), title=family))
    return Figure(
        key=KEY,
        title=TITLE,
        caption="One line for each model and budget, at its best learning rate, coloured by budget; means over equal"
        " spans of the axis.",
        alt=f"Training loss against images seen for {len(drawn)} runs of {len(names)} families.",
        panels=tuple(panels),
        height=380 if len(names) <= 3 else 680,
        share_y=True,
        legend_title="budget (FLOPs):",
    )


def thin(
    x: NDArray[np.float64], y: NDArray[np.float64], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`x`, `y` (m,) as at most `points` means over bins of equal width in log x; short curves stay as they are."""
    if len(x) <= points:
        return x, y
    edges = np.geomspace(x[0], x[-1], points + 1)
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, points - 1)
    counts = np.bincount(bins, minlength=points)
    filled = counts > 0
    return (
        np.bincount(bins, x, points)[filled] / counts[filled],
        np.bincount(bins, y, points)[filled] / counts[filled],
    )


def worth_drawing(rows: Sequence[Row]) -> list[Row]:
    """Of the finished runs of a model and budget the best; every other run whose budget is known as it is."""
    known = [row for row in rows if table.positive(row, "train_flops") or table.positive(row, "budget")]
    done = {id(row) for row in table.measured(known)}
    best = {id(row) for row in table.best_by((r for r in known if id(r) in done), "role", "family", "model", "budget")}
    return [row for row in known if id(row) in best or id(row) not in done]


def marks(history: Mapping[str, Any], name: str) -> list[Series]:
    """Spikes (a loss far above the rows before it) and restarts (`history["restarts"]`: images seen at each) of the
    run called `name`."""
    images, loss = finite_pairs(history)
    found = []
    high = spikes(loss)
    if high.size:
        note = f"spike of {name}"
        at, peaks = images[high], loss[high]
        found.append(
            Series("points", at, peaks, name="spike", group="spike", color="bad", symbol="x", notes=[note] * len(at))
        )
    restarts = [v for v in history.get("restarts") or () if images.size and images[0] <= v <= images[-1]]
    if restarts:
        height = np.interp(restarts, images, loss)
        note = f"restart of {name}"
        notes = [note] * len(restarts)
        found.append(
            Series(
                "points", restarts, height, name="restart", group="restart", symbol="diamond-open", size=9, notes=notes
            )
        )
    return found


def spikes(loss: NDArray[np.float64], window: int = 20, factor: float = 1.6) -> NDArray[np.intp]:
    """Where `loss` (m,) exceeds `factor` times the median of the `window` values before it; one index a spike."""
    if len(loss) <= window:
        return np.empty(0, dtype=np.intp)
    before = np.median(np.lib.stride_tricks.sliding_window_view(loss, window)[:-1], axis=1)
    high = np.flatnonzero(loss[window:] > factor * before) + window
    return high[np.diff(high, prepend=-window) > window]


def _legend_order(row: Row) -> tuple[bool, bool, float]:
    return row.get("role") == "final", row.get("status") in table.BROKEN, table.rung(row)


def _history(row: Row, histories: Curves) -> Mapping[str, Any]:
    history = histories.get(str(row.get("run_id"))) or {}
    return history if len(finite_pairs(history)[0]) > 1 else {}


def finite_pairs(
    history: Mapping[str, Any], cell: str = "train_loss"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Images seen and `cell` (m,), where both can be drawn on logarithmic axes."""
    x = np.array([np.nan if v is None else v for v in history.get("images") or ()], dtype=np.float64)
    y = np.array([np.nan if v is None else v for v in history.get(cell) or ()], dtype=np.float64)
    m = min(len(x), len(y))
    x, y = x[:m], y[:m]
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    return x[good], y[good]


# The figures of a single run: its loss, its learning rate and its speed over the images that it has seen.


RUN_X = Axis("images seen", "log")


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
        panels=(Panel(RUN_X, Axis("loss", "log"), tuple(series)),),
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
            panels.append(Panel(RUN_X, Axis(axis, limits=(0.0, 1.08 * max(y))), (line,), heading))
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
