"""Bars that compare variants: transfer with and without pretraining, ablations against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color
from isoflop.report.rows import Answer, Row, metric_of
from isoflop.report.text import number, quantity


def transfer_bars(answer: Answer, rows: Sequence[Row] = ()) -> Figure:
    """Accuracy on transfer tasks, one group of bars a task, one bar a set of weights, with the deviation over seeds.

    `rows` are the study's runs, whose order gives the families their colours.
    """
    key, title = "transfer", "Transfer: accuracy on another task"
    found = [r for r in (answer.get("transfer") or {}).get("rows") or () if table.finite(r.get("accuracy_mean"))]
    if not found:
        return Figure.missing(key, title, "Nothing was transferred.")
    families = table.families(rows, answer)
    tasks = tuple(dict.fromkeys(_task(row) for row in found))
    weights = list(dict.fromkeys(str(row.get("name", "–")) for row in found))
    series = []
    for position, name in enumerate(weights):
        own = [row for row in found if str(row.get("name", "–")) == name]
        mean = [float(row["accuracy_mean"]) for row in own]
        spread = [float(row["accuracy_std"]) if table.finite(row.get("accuracy_std")) else None for row in own]
        family = next((str(row["family"]) for row in own if row.get("family") in families), None)
        random = any(row.get("pretrained") is False for row in own) or "random" in name
        series.append(
            Series(
                "bar",
                [_task(row) for row in own],
                mean,
                **_spread(mean, spread),
                name=name,
                color=family_color(families.index(family)) if family else "muted" if random else family_color(position),
                opacity=0.4 if family and random else 1.0,
                notes=[f"{name}, {_task(row)}: {number(row['accuracy_mean'])}" for row in own],
            )
        )
    shown = "; ".join(f"{row.get('name')}, {_task(row)} {number(row['accuracy_mean'])}" for row in found)
    return Figure(
        key=key,
        title=title,
        caption="Accuracy on data that was never trained on; bars of error are the deviation over seeds. Fainter or"
        " grey: the same model with random weights.",
        alt=f"Bars of accuracy: {shown}.",
        panels=(Panel(Axis("task", "category", tasks), Axis("accuracy", limits=(0.0, 1.0)), tuple(series)),),
        height=340,
    )


def families_compared(rows: Sequence[Row], answer: Answer) -> Figure:
    """Ablation bars of a study: the best run of each family at the largest budget that all of them have (that of the
    answers, where each family has one), minus that of the first family of the study."""
    metric = metric_of(answer)
    key, title = "ablation", f"Family against family: {metric.short} at equal compute"
    runs, answers = table.measured(rows, "ladder"), table.measured(rows, "final")
    everyone = table.families(rows, answer)
    names = [family for family in everyone if table.of_family(runs, family)]
    if len(names) < 2:
        return Figure.missing(key, title, "There are not two families with a finished run to compare.")
    if all(table.of_family(answers, family) for family in names):
        most = max(table.rung(row) for row in answers)  # whole steps of different models: up to 1 % apart
        runs = [{**row, "budget": most} for row in answers]
    common = set.intersection(*(set(table.rungs(table.of_family(runs, family))) for family in names))
    if not common:
        return Figure.missing(key, title, "The families have no budget in common at which they could be compared.")
    budget = max(common)
    variants: list[dict[str, Any]] = []
    for family in names:
        at = [row for row in table.of_family(runs, family) if table.rung(row) == budget]
        best = min(at, key=lambda row: float(row["heldout_loss"]))
        alike = ("model", "learning_rate")
        copies = [row["heldout_loss"] for row in at if all(row.get(name) == best.get(name) for name in alike)]
        spread = stdev(copies) if len(copies) > 1 else None
        color = family_color(everyone.index(family))
        variants.append({"name": family, metric.name: fmean(copies), f"{metric.name}_std": spread, "color": color})
    figure = ablation(key, title, variants, metric.name, names[0])
    best_of_all = min(variants, key=lambda row: row[metric.name])["name"]
    caption = f"{figure.caption} Bars to the left are better; at {quantity(budget)} FLOPs, {best_of_all} is the best."
    return replace(figure, caption=caption)


def ablation(key: str, title: str, variants: Sequence[dict[str, Any]], value: str, baseline: str) -> Figure:
    """Lying bars: how much each variant differs from the baseline.

    Args:
        variants: rows with `name`, a number under `value`, and optionally its deviation under `value + "_std"` and a
            colour under `color`.
        value: the cell compared, also the axis title.
        baseline: the name of the variant that the others are compared with.
    """
    found = [row for row in variants if table.finite(row.get(value))]
    base = next((row for row in found if row.get("name") == baseline), None)
    others = [row for row in found if row is not base]
    if base is None or not others:
        return Figure.missing(
            key, title, f"There is no {value} of the baseline {baseline} and of a variant to compare."
        )
    gain = [float(row[value]) - float(base[value]) for row in others]
    names = tuple(str(row["name"]) for row in others)
    spread = [float(row[f"{value}_std"]) if table.finite(row.get(f"{value}_std")) else None for row in others]
    ends = [0.0, *(g + sign * (s or 0.0) for g, s in zip(gain, spread, strict=True) for sign in (-1, 1))]
    room = 0.06 * max(max(ends) - min(ends), 1e-9)
    bars = Series(
        "bar",
        gain,
        names,
        **_spread(gain, spread),
        colors=[str(row.get("color") or family_color(0)) for row in others],
        notes=[f"{n}: {number(row[value])} ({g:+.3f})" for n, row, g in zip(names, others, gain, strict=True)],
    )
    return Figure(
        key=key,
        title=title,
        caption=f"Each variant's {value} minus that of {baseline} ({number(base[value])}).",
        alt=f"Bars of {value} minus that of {baseline}: "
        + "; ".join(f"{n} {g:+.3f}" for n, g in zip(names, gain, strict=True))
        + ".",
        panels=(
            Panel(
                Axis(f"{value} minus that of {baseline}", limits=(min(ends) - room, max(ends) + room)),
                Axis("variant", "category", (*names[::-1], baseline)),
                (bars,),
            ),
        ),
        height=340 if len(others) <= 8 else 500,
        legend=False,
    )


def _spread(middle: Sequence[float], spread: Sequence[float | None]) -> dict[str, Any]:
    """The ends of the bars of error; none where nothing was repeated."""
    if not any(spread):
        return {}
    both = [(m, s or 0.0) for m, s in zip(middle, spread, strict=True)]
    return {"lower": [m - s for m, s in both], "upper": [m + s for m, s in both]}


_PROTOCOLS = {
    "ridge": "ridge regression", "knn": "nearest neighbours", "logistic": "logistic regression",
    "probe": "linear probe", "finetune": "fine-tuning",
}  # fmt: skip


def _task(row: dict[str, Any]) -> str:
    protocol = str(row.get("protocol", "–"))
    shots = f", {row['shots']:g} shots" if table.finite(row.get("shots")) and row["shots"] else ""
    return f"{row.get('dataset', '–')}: {_PROTOCOLS.get(protocol, protocol)}{shots}"
