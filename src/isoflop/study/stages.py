"""The stages of a study, one after another: fixed rungs, or batches that are chosen for what they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from isoflop.study.adaptive import Stage, next_stage
from isoflop.study.arena import Result
from isoflop.study.plan import Plan
from isoflop.study.planned import PlannedRun
from isoflop.study.rungs import MAX_EXTENSIONS, Losses, extensions, next_rung

SMALLEST_BATCH = 6  # runs that are chosen together however few workers there are


@dataclass(frozen=True)
class Ended:
    """How a run ended: its loss (+inf if it diverged or failed). `seconds` are those that it trained itself, on
    `images`: without its trunk's."""

    loss: float
    images: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Batch:
    """Runs to train side by side, as stage `number` (from 1) of `count` (None when nobody knows yet).

    `later` is the core-seconds that the ladder may still take after them; `thought` what the adaptive planner based
    them on; `plan` the plan at the prices that the runs before have corrected. A last batch without runs says why the
    ladder ends.
    """

    runs: list[PlannedRun]
    number: int
    count: int | None
    later: float
    thought: Stage | None = None
    plan: Plan | None = None


def stages(plan: Plan, ended: Callable[[], Mapping[str, Ended]], batch: int) -> Iterator[Batch]:
    """The ladder of `plan`; `ended` gives by id how runs have ended so far, `batch` is the number of workers.

    What comes depends on nothing but the plan, `batch` and how runs ended: a study that was stopped goes through the
    same stages again, and finds their runs done.
    """
    if plan.arena:
        return _adaptive(plan, ended, batch)
    return _fixed(plan, lambda: {run_id: end.loss for run_id, end in ended().items()})


def _fixed(plan: Plan, losses: Callable[[], Losses]) -> Iterator[Batch]:
    catalogue, count = plan.catalogue, len(plan.rungs) + 1
    later = [sum(rung.core_seconds for rung in plan.rungs[number:]) for number in range(count)]
    rung = plan.first
    yield Batch(rung, 1, count, later[1])
    known = {run.run_id for run in rung}
    for _ in range(MAX_EXTENSIONS):
        more = [run for run in extensions(rung, losses(), catalogue) if run.run_id not in known]
        if not more:
            break
        yield Batch(more, 1, count, later[1])
        rung = rung + more
        known |= {run.run_id for run in more}
    for number in range(1, len(plan.rungs)):
        rung = next_rung(number, catalogue.config, catalogue, plan.sizes, rung, losses())
        yield Batch(rung, number + 1, count, later[number + 1])


def _adaptive(plan: Plan, ended: Callable[[], Mapping[str, Ended]], batch: int) -> Iterator[Batch]:
    assert plan.arena
    assert plan.funds
    size, number = max(batch, SMALLEST_BATCH), 0
    results: list[Result] = []
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    while True:
        now = plan.priced(measured)  # by the runs of earlier stages alone: a study that goes on sees the same prices
        assert now.arena
        assert now.funds
        stage = next_stage(now.arena, results, now.funds.allowance, size)
        number += 1
        runs = [
            plan.catalogue.run(trial.family, trial.model, trial.budget, trial.rate, number=trial.copy)
            for trial in stage.trials
        ]
        allowance = now.funds.allowance
        later = now.ladder_seconds * max(0.0, 1 - stage.spent / allowance) if allowance > 0 else 0.0
        yield Batch(runs, number, None, later, stage, now)
        if stage.stop:
            return
        known = ended()
        ends = [known.get(run.run_id, Ended(math.inf)) for run in runs]
        for trial, end in zip(stage.trials, ends, strict=True):
            key = trial.family, trial.model
            images, seconds = measured.get(key, (0.0, 0.0))
            if math.isfinite(end.loss) and end.seconds:
                measured[key] = images + end.images, seconds + end.seconds
        rate = plan.funds.per_second
        costs = [end.seconds * rate if rate and end.seconds is not None else None for end in ends]
        results += [Result(t, end.loss, cost) for t, end, cost in zip(stage.trials, ends, costs, strict=True)]
