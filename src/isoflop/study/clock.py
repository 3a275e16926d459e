"""Core-seconds of work: done, and foreseen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.study.plan import Plan
from isoflop.study.planned import PlannedRun
from isoflop.train.schedules import trunk_steps


class Clock:
    """Core-seconds of all known runs, without the steps that their trunks have, and of what is foreseen after them."""

    def __init__(self, plan: Plan) -> None:
        self.per_image = plan.seconds_per_image
        self._flops = {key: plan.catalogue.flops_per_image(*key) for key in self.per_image}
        self.later = plan.ladder_seconds + plan.final_seconds  # of what is not yet known run by run
        self.weights: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.over: set[str] = set()
        self._trunks: dict[str, int] = {}

    def begin(self, runs: Sequence[PlannedRun], later: float) -> None:
        """`runs` are known, and after them `later` core-seconds are foreseen."""
        self.later = later
        for run in runs:
            shared = self._trunks.get(run.trunk_id or "", 0)
            self.weights[run.run_id] = self.seconds(run) * (1 - min(shared / run.config.steps, 1))
        for run in runs:
            if run.trunk_id:
                reached = trunk_steps(run.config.schedule, run.config.steps)
                self._trunks[run.trunk_id] = max(reached, self._trunks.get(run.trunk_id, 0))

    def seconds(self, run: PlannedRun) -> float:
        """What all of `run` should take, at the efficiency of the nearest measured size of its family."""
        sizes = [key for key in self.per_image if key[0] == run.family]
        nearest = min(sizes, key=lambda key: abs(math.log(self._flops[key] / run.flops_per_image)))
        return run.images * self.per_image[nearest] * run.flops_per_image / self._flops[nearest]

    def at(self, run: PlannedRun, step: int) -> None:
        self.parts[run.run_id] = self.weights[run.run_id] * step / run.config.steps

    def finished(self, run: PlannedRun) -> None:
        self.parts[run.run_id] = self.weights[run.run_id]
        self.over.add(run.run_id)

    @property
    def done(self) -> float:
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        return sum(self.weights.values()) + self.later
