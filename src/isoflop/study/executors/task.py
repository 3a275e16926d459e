"""Tasks and events: the interface between a study and its executors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from isoflop.config import TransferConfig
from isoflop.study.planned import PlannedRun

MAX_DEATHS = 3  # of workers, over one run, before the run counts as failed


@dataclass(frozen=True)
class RunTask:
    """A run to train, where, and the folder of steps it may share with shorter and longer ones."""

    run: PlannedRun
    directory: Path
    trunk: Path | None
    target: TransferConfig | None = None
    """What the finished run is measured by, if not by its held-out loss."""
    seconds: float = 0.0
    """What it should take, as far as anybody knows."""

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run.run_id,
            "config": self.run.config.model_dump(mode="json"),
            "directory": str(self.directory.absolute()),  # where a worker of another machine finds it as well
            "trunk": str(self.trunk.absolute()) if self.trunk else None,
            "target": self.target.model_dump(mode="json") if self.target else None,
        }


@dataclass(frozen=True)
class Event:
    """Something that happened: "started", "progress" (`step`, and its `phase` where that comes before the run's own),
    "ended" (`state`, `error`), "died", "warning"."""

    kind: str
    run_id: str
    step: int = 0
    state: str = ""
    error: str = ""
    phase: str = ""

    @classmethod
    def from_message(cls, message: dict[str, Any], run_id: str) -> Event:
        """What a worker has said; `run_id` is what it was at, for messages that name no run."""
        kind = message["event"]
        if kind == "warning":
            return cls(kind, run_id, error=message["message"])
        return cls(
            kind,
            message["run"],
            step=message.get("step", 0),
            state=message.get("state", ""),
            error=message.get("error", ""),
            phase=message.get("phase", ""),
        )


class Executor(Protocol):
    """Trains runs, `workers` at a time; a context that stops what is still being trained when it is left."""

    workers: int
    cores: int
    """CPU cores that fewer runs than workers share out; 1 on a cluster, whose jobs have their own."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        """Trains all `tasks`, the first ones first; yields what happens, an "ended" for each task among it.

        A run whose worker dies is given to another, which resumes it; after the third death it counts as failed.
        """
        ...


def after_death(task: RunTask, deaths: Counter[str], cause: str) -> Event:
    """What the death of a worker means for the run that it was at, which it adds to `deaths`: another try, or its end.

    `cause` completes "its worker was".
    """
    run_id = task.run.run_id
    deaths[run_id] += 1
    if deaths[run_id] < MAX_DEATHS:
        return Event("died", run_id, error=f"its worker was {cause}; resuming it in a new one")
    return Event("ended", run_id, state="failed", error=f"its worker was {cause}, for the {MAX_DEATHS}rd time")
