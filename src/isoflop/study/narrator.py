"""What a study says while it works. The base class says nothing; the command line gives it a voice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.config import TransferConfig
from isoflop.study.adaptive import Stage
from isoflop.study.plan import Plan
from isoflop.study.planned import PlannedRun


class Narrator:
    """Listens to a study. Every method may be left as it is."""

    def planned(self, plan: Plan, workers: int) -> None:
        """Before anything is trained."""

    def thought(self, stage: Stage, before: Stage | None) -> None:
        """What the finished runs say and which runs follow from it; `before` is what was thought a stage earlier."""

    def rung(self, number: int, count: int | None, runs: Sequence[PlannedRun]) -> None:
        """Runs are about to be trained that were not done yet; stage `number` of `count`, the answers last.

        Nobody knows the count of an adaptive study before its end.
        """

    def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
        """Core-seconds of work done of all that is foreseen, and runs finished of all runs known by now."""

    def line(self, text: str) -> None:
        """Something worth knowing: a run that failed, a worker that died, a damaged checkpoint."""

    def answered(self, document: dict[str, Any]) -> None:
        """The laws are fitted: what `answer.json` holds, before the answers are trained."""

    def graded(self, document: dict[str, Any]) -> None:
        """The answers are trained: predicted against measured."""

    def judged(self, name: str, task: TransferConfig) -> None:
        """The backbone `name` is about to be tried on the transfer task."""

    def transferred(self, rows: Sequence[dict[str, Any]]) -> None:
        """The trained answers on the transfer task."""
