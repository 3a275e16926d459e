"""The cost of a study, and the saving by steps that runs share on their trunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.report.rows import Row, finite, positive
from isoflop.report.text import quantity


@dataclass(frozen=True)
class Savings:
    """Training FLOPs of all runs that have ended, had each been trained alone; and of these, what trunks saved."""

    separate: float
    trunks: float

    @property
    def trained(self) -> float:
        return self.separate - self.trunks

    def sentences(self) -> list[str]:
        """What was saved, where anything was."""
        if self.trunks <= 0:
            return []
        share = f"{100 * self.trunks / self.separate:.0f}\u00a0%"
        return [f"shared trunks saved {quantity(self.trunks)} FLOPs, {share} of what separate runs would have taken"]


def savings(rows: Sequence[Row]) -> Savings:
    """What the runs of a table saved. Cells that are missing count as nothing saved."""
    trained, _ = total_cost(rows)
    trunks = sum(
        row["train_flops"] / row["steps"] * _steps(row, "trunk_steps")
        for row in _begun(rows)
        if positive(row, "train_flops", "steps")
    )
    return Savings(trained + trunks, trunks)


def utilisation(rows: Sequence[Row]) -> float | None:
    """Training FLOPs of `rows` as a share of what the device's peak would have given in their seconds, each step
    counted once; None where no run tells."""
    told = [(own_cost(row)[1], row["utilisation"]) for row in rows if finite(row.get("utilisation"))]
    seconds = sum(own for own, _ in told)
    return sum(own * share for own, share in told) / seconds if seconds > 0 else None


def _begun(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("status") not in ("planned", "")]


def own_cost(row: Row, step: float | None = None) -> tuple[float, float]:
    """Training FLOPs and seconds that a run took itself: without the steps of its trunk, which another run has taken,
    and without those after `step`, where it has come no further (or `stopped_at`, where an earlier version has stopped
    it). A row that does not tell steps counts whole."""
    flops = row["train_flops"] if finite(row.get("train_flops")) else 0.0
    seconds = row["seconds"] if finite(row.get("seconds")) else 0.0
    if not positive(row, "steps"):
        return flops, seconds
    steps, trunk = row["steps"], _steps(row, "trunk_steps")
    ended = _steps(row, "stopped_at") if positive(row, "stopped_at") and row.get("status") == "stopped" else steps
    ended = max(ended if step is None else step, trunk)
    return flops * (ended - trunk) / steps, seconds * (ended - trunk) / max(ended, 1.0)


def limit_sentence(answer: Mapping[str, Any]) -> str:
    """The limit of a study beside what it has spent, with a warning where that is more; "" without a limit."""
    planner = answer.get("planner") or {}
    limit, spent, unit = (planner.get(name) for name in ("limit", "spent", "unit"))
    if not (finite(limit) and finite(spent)) or limit <= 0:
        return ""
    told = f"{quantity(spent, 3)} of {quantity(limit, 3)} {unit} spent, answers and evaluation included"
    return told if spent <= limit else f"{told}: the limit was exceeded by {100 * (spent / limit - 1):.0f}\u00a0%"


_ORDER = {"ladder": 0, "answer": 1, "everything else": 2}  # as the study goes; JSON has sorted them


def hours_rows(answer: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What for, hours planned, hours spent and their share, of a study that tells; the sum last."""
    found = answer.get("hours")
    if not isinstance(found, Mapping):
        return []
    pairs = {
        str(name): (pair["planned"], pair["spent"])
        for name, pair in sorted(found.items(), key=lambda item: _ORDER.get(str(item[0]), len(_ORDER)))
        if isinstance(pair, Mapping) and finite(pair.get("planned")) and finite(pair.get("spent"))
    }
    pairs["all"] = (sum(planned for planned, _ in pairs.values()), sum(spent for _, spent in pairs.values()))
    total = pairs["all"][1]
    if total <= 0:
        return []
    return [(name, f"{p:.3f}", f"{s:.3f}", f"{100 * s / total:.0f}\u00a0%") for name, (p, s) in pairs.items()]


HOURS_HEADS = ("what for", "hours planned", "hours spent", "share")


def price_per_hour(answer: Mapping[str, Any]) -> float | None:
    """What a device-hour costs, where the study says so."""
    config = (answer.get("study") or {}).get("config")
    study = config.get("study") if isinstance(config, Mapping) else None
    price = study.get("price_per_hour") if isinstance(study, Mapping) else None
    return float(price) if finite(price) and price > 0 else None


def total_cost(rows: Sequence[Row]) -> tuple[float, float]:
    """Training FLOPs and seconds of all runs that have begun, each step counted once. What the page and the command
    print of a study's cost is this."""
    costs = [own_cost(row) for row in _begun(rows)]
    return sum(flops for flops, _ in costs), sum(seconds for _, seconds in costs)


def _steps(row: Row, name: str) -> float:
    value = row.get(name)
    return min(max(value, 0.0), row["steps"]) if finite(value) else 0.0
