"""What a study did not have to train: steps that runs share on their trunks, and the rest of runs that were stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.report.rows import Row, finite, positive
from isoflop.report.text import quantity


@dataclass(frozen=True)
class Savings:
    """Training FLOPs of all runs that have ended, had each been trained alone and to its end; of these, what trunks and
    what stops saved; and how many were stopped."""

    separate: float
    trunks: float
    stops: float
    stopped: int

    @property
    def trained(self) -> float:
        return self.separate - self.trunks - self.stops

    def sentences(self) -> list[str]:
        """What was saved, where anything was."""
        told = []
        if self.trunks > 0:
            share = f"{100 * self.trunks / self.separate:.0f}\u00a0%"
            told.append(
                f"shared trunks saved {quantity(self.trunks)} FLOPs, {share} of what separate runs would have taken"
            )
        if self.stopped:
            share = f"{100 * self.stops / self.separate:.0f}\u00a0%"
            runs = f"{self.stopped} run{'s' if self.stopped > 1 else ''}"
            told.append(f"{runs} stopped halfway as hopeless saved {quantity(self.stops)} FLOPs, {share}")
        return told


def savings(rows: Sequence[Row]) -> Savings:
    """What the runs of a table saved. Cells that are missing count as nothing saved."""
    separate = trunks = stops = 0.0
    stopped = 0
    for row in rows:
        if row.get("status") not in ("done", "diverged", "stopped") or not positive(row, "train_flops", "steps"):
            continue
        step = row["train_flops"] / row["steps"]
        separate += row["train_flops"]
        trunks += step * _steps(row, "trunk_steps")
        if row["status"] == "stopped":
            stopped += 1
            stops += step * (row["steps"] - _steps(row, "stopped_at")) if positive(row, "stopped_at") else 0.0
    return Savings(separate, trunks, stops, stopped)


def _steps(row: Row, name: str) -> float:
    value = row.get(name)
    return min(max(value, 0.0), row["steps"]) if finite(value) else 0.0
