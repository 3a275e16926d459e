"""Where the compute and the time of a study went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.rows import Answer, Row
from isoflop.report.savings import own_cost, total_cost
from isoflop.report.text import duration, quantity, time_unit
from isoflop.report.theme import family_color

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
    config = (answer.get("study") or {}).get("config")
    study = config.get("study") if isinstance(config, Mapping) else None
    price = study.get("price_per_hour") if isinstance(study, Mapping) else None
    if not table.finite(price) or price <= 0:
        return "."
    return f", which cost {quantity(price * seconds / 3600, 3)} at {quantity(price, 3)} an hour."


def _amount(value: float, cell: str) -> str:
    return duration(value) if cell == "seconds" else f"{quantity(value)} training FLOPs"
