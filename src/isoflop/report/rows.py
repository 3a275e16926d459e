"""Questions that every figure asks of the table of results (one dict a run)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from isoflop.report.metric import Metric
from isoflop.report.text import number, quantity

Row = dict[str, Any]
Answer = dict[str, Any]
BROKEN = ("diverged", "failed")


def finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number (and not a bool or text)."""
    if type(value) is float:  # asked a million times of a large study
        return math.isfinite(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def positive(row: Row, *names: str) -> bool:
    """Whether every named cell of `row` is a finite number above zero, so that a logarithmic axis can show it."""
    for name in names:  # half the time of all(), and asked a million times of a large study
        value = row.get(name)
        if not (finite(value) and value > 0):
            return False
    return True


def measured(rows: Iterable[Row], role: str | None = None) -> list[Row]:
    """The finished runs with a loss and a compute that can be drawn, of one role or of all."""
    return [
        row
        for row in rows
        if row.get("status") == "done"
        and positive(row, "train_flops", "heldout_loss", "flops_per_image", "images")
        and (role is None or row.get("role", "ladder") == role)
    ]


def families(rows: Iterable[Row], answer: Answer) -> tuple[str, ...]:
    """The families in the order of the table's first mention; those only in the answer come last, as do those that it
    left out."""
    seen = dict.fromkeys(str(row["family"]) for row in rows if row.get("family"))
    named = [str(name) for part in ("families", "left_out") for name in answer.get(part) or {}]
    return tuple(dict.fromkeys([*seen, *named]))


def of_family(rows: Iterable[Row], family: str) -> list[Row]:
    """The rows of one family."""
    return [row for row in rows if row.get("family") == family]


def rung(row: Row) -> float:
    """The budget (training FLOPs) that the run was planned for; what it used, where the plan is not known."""
    return float(row["budget"] if positive(row, "budget") else row["train_flops"])


def rungs(rows: Iterable[Row]) -> list[float]:
    """The distinct budgets, ascending."""
    return sorted({rung(row) for row in rows})


def best_by(rows: Iterable[Row], *names: str) -> list[Row]:
    """The row with the lowest loss for each combination of the named cells, in order of appearance; the `budget` of a
    row that was not planned for one is what it used."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(rung(row) if name == "budget" else row.get(name) for name in names)
        if key not in best or row["heldout_loss"] < best[key]["heldout_loss"]:
            best[key] = row
    return list(best.values())


def envelope(rows: Sequence[Row]) -> list[Row]:
    """The best run of each budget, ascending in compute."""
    best: dict[float, Row] = {}
    for row in rows:
        key = rung(row)
        if key not in best or row["heldout_loss"] < best[key]["heldout_loss"]:
            best[key] = row
    return [best[key] for key in sorted(best)]


def final_runs(rows: Iterable[Row], answer: Answer) -> dict[str, Row]:
    """Family → the finished run that trained its answer, for those that were trained."""
    wanted = {(entry or {}).get("run_id") for entry in (answer.get("families") or {}).values()}
    wanted.add((answer.get("final") or {}).get("run_id"))
    found: dict[str, Row] = {}
    for row in measured(rows, "final"):
        if not row.get("family"):
            continue
        if row.get("family") not in found or row.get("run_id") in wanted:
            found[str(row.get("family"))] = row
    return found


def final_run(rows: Iterable[Row], answer: Answer) -> Row | None:
    """The finished run that trained the answer, if there is one."""
    return final_runs(rows, answer).get(str(answer.get("best")))


def interval(entry: Row) -> tuple[float, float] | None:
    """The prediction interval of a family's entry in the answer, or None where it is missing or not of numbers."""
    bounds = entry.get("interval")
    if isinstance(bounds, Sequence) and len(bounds) == 2 and finite(bounds[0]) and finite(bounds[1]):
        return float(bounds[0]), float(bounds[1])
    return None


def describe(row: Row, metric: Metric) -> str:
    """One line about a run, for the pointer."""
    return (
        f"{row.get('model', '?')}, {quantity(row.get('images'))} images, "
        f"learning rate {quantity(row.get('learning_rate'))}, "
        f"{metric.name} {number(row.get('heldout_loss'))}"
    )
