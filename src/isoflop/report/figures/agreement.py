"""Predicted against measured: how well each law fits the runs, and predicts the trained answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series, family_color, family_symbol
from isoflop.report.law import family_laws
from isoflop.report.rows import Answer, Row, metric_of
from isoflop.report.text import number

KEY, TITLE = "agreement", "Predicted against measured"


def agreement(rows: Sequence[Row], answer: Answer) -> Figure:
    """Left the loss that the law gives each run against the loss it had; right the difference against compute."""
    runs, laws, metric = table.measured(rows, "ladder"), family_laws(answer), metric_of(answer)
    if not runs or not laws:
        return Figure.missing(KEY, TITLE, "There is no law to compare with: too few runs have finished.")
    left: list[Series] = []
    right: list[Series] = []
    spread: list[float] = []
    losses: list[float] = []
    for position, family in enumerate(table.families(rows, answer)):
        law = laws.get(family)
        own = table.best_by(table.of_family(runs, family), "model", "flops_per_image", "budget") if law else []
        if law is None or not own:
            continue
        measured = np.array([row["heldout_loss"] for row in own], dtype=np.float64)
        n = np.array([row["flops_per_image"] for row in own], dtype=np.float64)
        predicted = law.loss(n, np.array([row["images"] for row in own], dtype=np.float64))
        percent = 100 * (measured / predicted - 1)
        spread += [float(v) for v in percent if np.isfinite(v)]
        losses += [*measured.tolist(), *predicted.tolist()]
        notes = [f"{table.describe(row, metric)}, predicted {number(p)}" for row, p in zip(own, predicted, strict=True)]
        marks: dict[str, Any] = {
            "group": family,
            "color": family_color(position),
            "symbol": family_symbol(position),
            "notes": notes,
        }
        left.append(Series("points", predicted, measured, name=family, **marks))
        right.append(Series("points", [row["train_flops"] for row in own], percent, **marks))
    finals = table.final_runs(rows, answer)
    names = table.families(rows, answer)
    for family, run in finals.items():
        entry = (answer.get("families") or {}).get(family) or {}
        if not table.positive(entry, "predicted_loss"):
            continue
        chosen = family == answer.get("best")
        loss, predicted_loss = float(run["heldout_loss"]), float(entry["predicted_loss"])
        losses += [loss, predicted_loss]
        look: dict[str, Any] = {
            "color": "ink" if chosen else family_color(names.index(family)),
            "symbol": "star",
            "size": 15.0,
            "group": "answer",
            "notes": [f"{table.describe(run, metric)}, predicted {number(predicted_loss)}"],
        }
        left.append(Series("points", [predicted_loss], [loss], name="the answer" if chosen else "", **look))
        right.append(Series("points", [run["train_flops"]], [100 * (loss / predicted_loss - 1)], **look))
    if not spread:
        return Figure.missing(KEY, TITLE, "There is no law to compare with: too few runs have finished.")
    ends = [0.95 * min(losses), 1.05 * max(losses)]
    left.insert(0, Series("line", ends, ends, color="muted", dash="dash", width=1.2))
    across = [
        min(row["train_flops"] for row in runs),
        max(row["train_flops"] for row in [*runs, *finals.values()]),
    ]
    right.insert(0, Series("line", across, [0.0, 0.0], color="muted", dash="dash", width=1.2))
    typical = float(np.median(np.abs(spread))) if spread else float("nan")
    star = " A star was predicted before it was trained." if finals else ""
    return Figure(
        key=KEY,
        title=TITLE,
        caption=f"Runs at their best learning rate. On the dashed line the law is exact; half of the runs are within "
        f"{number(typical, 1)} % of it.{star}",
        alt=f"Measured against predicted {metric.axis}; the median difference is {number(typical, 1)} percent of it.",
        panels=(
            Panel(
                Axis(f"predicted {metric.name}", "log"),
                Axis(f"measured {metric.name}", "log"),
                tuple(left),
                title="Agreement",
            ),
            Panel(
                Axis("training compute (FLOPs)", "log"),
                Axis("measured over predicted − 1 (%)"),
                tuple(right),
                title="Residuals",
            ),
        ),
        columns=2,
        height=420,
    )
