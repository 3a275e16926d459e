"""What a study says while it works. The base class says nothing; the command line gives it a voice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.study.planned import PlannedRun
from isoflop.study.pricing import RungForecast


class Narrator:
    """Listens to a study. Every method may be left as it is."""

    def planned(self, runs: Sequence[PlannedRun], rungs: Sequence[RungForecast], finals: float, workers: int) -> None:
        """Before anything is trained: the first rung's runs, the forecast of all rungs, core-seconds of the answers."""

    def rung(self, number: int, count: int, budget: float, runs: Sequence[PlannedRun]) -> None:
        """Runs are about to be trained that were not done yet; `number` of `count`, the answers last."""

    def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
        """Core-seconds of work done of all that is foreseen, and runs finished of all runs known by now."""

    def line(self, text: str) -> None:
        """Something worth knowing: a run that failed, a worker that died, a damaged checkpoint."""

    def answered(self, document: dict[str, Any]) -> None:
        """The laws are fitted: what `answer.json` holds, before the answers are trained."""

    def graded(self, document: dict[str, Any]) -> None:
        """The answers are trained: predicted against measured."""

    def transferred(self, rows: Sequence[dict[str, Any]]) -> None:
        """The trained answers on the transfer task."""
