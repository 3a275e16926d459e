"""Loss against compute: the runs, the frontier and law of each family with its interval, prediction and measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.laws.columns import tells_nothing
from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color, family_symbol
from isoflop.report.law import FamilyLaw, family_laws
from isoflop.report.rows import Answer, Metric, Row, metric_of
from isoflop.report.text import between, number, quantity

KEY = "frontier"
X = Axis("training compute (FLOPs)", "log")


def frontier(rows: Sequence[Row], answer: Answer) -> Figure:
    """Every finished run, the best of each budget, and each family's law out to the target compute."""
    runs, metric = table.measured(rows, "ladder"), metric_of(answer)
    title = f"{metric.capital} against compute"
    if not runs:
        return Figure.missing(KEY, title, f"No run of the ladder has finished with a {metric.short} that can be drawn.")
    laws = family_laws(answer)
    target = answer.get("target_flops")
    low = min(row["train_flops"] for row in runs)
    high = max([row["train_flops"] for row in runs] + ([target] if table.finite(target) else []))
    series: list[Series] = []
    for position, family in enumerate(table.families(rows, answer)):
        color, own = family_color(position), table.of_family(runs, family)
        best = table.envelope(own)
        series.append(
            Series(
                "points",
                [row["train_flops"] for row in own],
                [row["heldout_loss"] for row in own],
                group=family,
                color=color,
                symbol=family_symbol(position),
                size=4.5,
                opacity=0.35,
                notes=[table.describe(row, metric) for row in own],
            )
        )
        series += _law(family, laws.get(family), best, (low, high), color, answer)
        series.append(
            Series(
                "points",
                [row["train_flops"] for row in best],
                [row["heldout_loss"] for row in best],
                name=family,
                group=family,
                color=color,
                symbol=family_symbol(position),
                size=9,
                notes=[f"best of its budget: {table.describe(row, metric)}" for row in best],
            )
        )
        series += _prediction(family, color, answer)
    series += _outcomes(rows, answer, metric)
    return Figure(
        key=KEY,
        title=title,
        caption=_caption(bool(laws), bool(table.final_runs(rows, answer))),
        alt=_alt(rows, runs, answer, metric),
        panels=(Panel(X, Axis(metric.axis, "log"), tuple(series)),),
        height=500,
    )


def _law(
    family: str,
    law: FamilyLaw | None,
    best: Sequence[Row],
    span: tuple[float, float],
    color: str,
    answer: Answer,
) -> list[Series]:
    """The law of a family and its interval, from the first run to what was predicted: it ends where the diamond is.

    A family without a law gets a dashed line from its best run to its prediction.
    """
    entry = (answer.get("families") or {}).get(family) or {}
    target = table.compute_of(entry, answer)
    predicted = target is not None and table.positive(entry, "predicted_loss")
    last = best[-1]["train_flops"] if best else span[0]
    if law is None:
        if not predicted or not best:
            return []
        line = [last, target], [best[-1]["heldout_loss"], entry["predicted_loss"]]
        return [Series("line", *line, group=family, color=color, dash="dash", width=1.5)]
    end = max(target if predicted and target else span[1], 1.001 * span[0])
    compute = np.geomspace(span[0], end, 60)
    bounds = table.interval(entry) if predicted else None
    series = []
    lower, upper = law.band(compute)
    if lower is not None and upper is not None:
        if bounds and not tells_nothing(*bounds):
            lower, upper = _led_to(bounds[0], lower, compute, last), _led_to(bounds[1], upper, compute, last)
        series.append(Series("band", compute, lower=lower, upper=upper, group=family, color=color, opacity=0.13))
    values = law.frontier(compute)
    if predicted:
        values = _led_to(float(entry["predicted_loss"]), values, compute, last)
    return [*series, Series("line", compute, values, group=family, color=color)]


def _led_to(value: float, curve: NDArray[np.float64], compute: NDArray[np.float64], last: float) -> Any:
    """`curve` over `compute`, bent beyond the `last` run of the ladder so that it ends at `value`."""
    if compute[-1] <= last or not (value > 0 and curve[-1] > 0):
        return curve
    share = np.clip(np.log(compute / last) / np.log(compute[-1] / last), 0, 1)
    return curve * (value / curve[-1]) ** share


def _prediction(family: str, color: str, answer: Answer) -> list[Series]:
    entry = (answer.get("families") or {}).get(family) or {}
    target, loss = table.compute_of(entry, answer), entry.get("predicted_loss")
    if target is None or not table.finite(loss):
        return []
    interval = table.interval(entry)
    note = f"{family}, predicted at {quantity(target)} FLOPs: {number(loss)}"
    if interval is not None:
        note += f" ({between(interval)})"
        interval = None if tells_nothing(*interval) else interval
    return [
        Series(
            "points",
            [target],
            [float(loss)],
            lower=interval[:1] if interval else (),
            upper=interval[1:] if interval else (),
            group=family,
            color=color,
            symbol="diamond-open",
            size=10,
            notes=[note],
        )
    ]


def _outcomes(rows: Sequence[Row], answer: Answer, metric: Metric) -> list[Series]:
    names = table.families(rows, answer)
    return [
        Series(
            "points",
            [run["train_flops"]],
            [run["heldout_loss"]],
            name="the answer, measured" if family == answer.get("best") else "",
            group="the answer, measured",
            color="ink" if family == answer.get("best") else family_color(names.index(family)),
            symbol="star",
            size=15,
            notes=[f"the answer of {family}, trained: {table.describe(run, metric)}"],
        )
        for family, run in table.final_runs(rows, answer).items()
    ]


def _caption(has_laws: bool, trained: bool) -> str:
    text = "Each small marker is a finished run; the large ones are the best of their budget."
    if has_laws:
        text += (
            " Lines are the frontier laws a(C + d)⁻ᵇ + c; beyond the ladder they lead to the prediction of the table,"
        )
        text += " the open diamond (dashed where there is no law);"
        text += " bands are the interval in which the best run should fall."
    if trained:
        text += " A star is a run that trained an answer; no law saw it."
    return text


def _alt(rows: Sequence[Row], runs: Sequence[Row], answer: Answer, metric: Metric) -> str:
    parts = []
    for family in table.families(rows, answer):
        best = table.envelope(table.of_family(runs, family))
        if best:
            first, last = best[0], best[-1]
            parts.append(
                f"{family}: best {metric.short} {number(first['heldout_loss'])} at "
                f"{quantity(first['train_flops'])} FLOPs, "
                f"{number(last['heldout_loss'])} at {quantity(last['train_flops'])}"
            )
    run = table.final_run(rows, answer)
    if run is not None:
        parts.append(f"the answer measured {number(run['heldout_loss'])} at {quantity(run['train_flops'])}")
    return f"{metric.heading} against training compute, both logarithmic. " + "; ".join(parts) + "."
