"""A whole study, from plan to report. Stopped anywhere and started again, it goes on where it was."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.study.answer import answer_document, answer_from, grade
from isoflop.study.narrator import Narrator
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.pool import LocalPool, Task
from isoflop.study.pricing import RungForecast, forecast, measure_seconds_per_image
from isoflop.study.rungs import MAX_EXTENSIONS, extensions, first_rung, ladder_sizes, next_rung
from isoflop.study.store import Row, Store, finite_loss
from isoflop.train.lock import sole_writer
from isoflop.train.run_directory import environment
from isoflop.train.schedules import trunk_steps
from isoflop.transfer import open_backbone, transfer


@dataclass(frozen=True)
class Plan:
    """What a study would do: its presets, the runs of its first rung, and a forecast of every rung."""

    sizes: dict[str, tuple[str, ...]]
    first: list[PlannedRun]
    rungs: list[RungForecast]
    seconds_per_image: dict[tuple[str, str], float]

    def final_core_seconds(self, config: StudyConfig, catalogue: Catalogue) -> float:
        """Core-seconds of training the answers, guessed from the largest size of each family."""
        target = config.study.target_budget
        largest = [(family, names[-1]) for family, names in self.sizes.items()]
        each = [target / catalogue.flops_per_image(*key) * self.seconds_per_image[key] for key in largest]
        return sum(each) / len(each) * min(config.study.finals, len(each))


def plan_study(config: StudyConfig, catalogue: Catalogue | None = None) -> Plan:
    """The plan of `config`, priced by a few steps of each model on this machine; nothing is written."""
    catalogue = catalogue or Catalogue(config)
    sizes = ladder_sizes(config, catalogue)
    first = first_rung(config, catalogue, sizes)
    seconds = measure_seconds_per_image(catalogue, sizes)
    return Plan(sizes, first, forecast(config, catalogue, sizes, seconds), seconds)


def run_study(config: StudyConfig, narrator: Narrator | None = None, *, command: str = "") -> dict[str, Any]:
    """Plans, trains, fits, answers, trains the answer, transfers it and writes the report; returns the answer document.

    Everything lies in `config.directory`. Runs that are done are not trained again, interrupted ones are resumed.

    Raises StudyError, ConfigError, DataError, ModelError before anything is trained when the study cannot be;
    StudyError later when the storage fails or no family has enough finished runs to be answered.
    """
    narrator = narrator or Narrator()
    catalogue = Catalogue(config)
    ladder_sizes(config, catalogue)  # what cannot be planned is refused before anything is written
    with sole_writer(config.directory, StudyError):
        store = Store(config.directory)
        store.claim(config)
        with LocalPool(config.study.workers or os.cpu_count() or 1) as pool:
            return _Study(config, catalogue, store, narrator, pool, command).run()


class _Study:
    """One attempt at a study."""

    def __init__(
        self, config: StudyConfig, catalogue: Catalogue, store: Store, narrator: Narrator, pool: LocalPool, command: str
    ) -> None:
        self.config = config
        self.catalogue = catalogue
        self.store = store
        self.narrator = narrator
        self.pool = pool
        self.command = command
        self.runs: dict[str, PlannedRun] = {}
        self.failures: dict[str, str] = {}
        self.began = time.time()

    def run(self) -> dict[str, Any]:
        config = self.config
        plan = plan_study(config, self.catalogue)
        self.clock = _Clock(plan, config, self.catalogue)
        self.narrator.planned(plan.first, plan.rungs, self.clock.finals, self.pool.workers)

        count = len(self.catalogue.budgets) + 1
        rung = self._train(1, count, plan.first)
        for _ in range(MAX_EXTENSIONS):
            more = [run for run in extensions(rung, self._losses(), self.catalogue) if run.run_id not in self.runs]
            if not more:
                break
            rung += self._train(1, count, more)
        for number in range(1, len(self.catalogue.budgets)):
            runs = next_rung(number, config, self.catalogue, plan.sizes, rung, self._losses())
            rung = self._train(number + 1, count, runs)

        answer = answer_from(config, self.catalogue, self._rows())
        document = answer_document(answer)
        self._write_answer(document)
        self.narrator.answered(document)
        finals = [family.run for family in answer.families[: config.study.finals]]
        self._train(count, count, finals)
        self.store.drop_trunks()
        rows = {row["run_id"]: row for row in self._rows()}
        document = grade(document, {run.family: rows[run.run_id] for run in finals})
        self._write_answer(document)
        self.narrator.graded(document)
        document["transfer"] = {"rows": self._transfer(finals, rows)}
        self.narrator.transferred(document["transfer"]["rows"])
        self._write_answer(document)
        return document

    def _train(self, number: int, count: int, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Trains those of `runs` that are not done; returns all of them."""
        self.runs |= {run.run_id: run for run in runs}
        self.clock.begin(number, runs)
        self.store.write_rows(self._rows())
        todo = [run for run in runs if self._row(run)["status"] not in ("done", "diverged")]
        todo.sort(key=self.clock.seconds, reverse=True)
        if todo:
            self.narrator.rung(number, count, runs[0].budget, todo)
        for run in runs:
            if run not in todo:
                self.clock.finished(run)
        tasks = [Task(run, self.store.run_directory(run.run_id), self.store.trunk_directory(run)) for run in todo]
        for event in self.pool.run(tasks):
            if event.kind in ("died", "warning"):
                self.narrator.line(f"{self._label(event.run_id)}: {event.error}")
            elif event.kind == "progress":
                self.clock.at(self.runs[event.run_id], event.step)
            elif event.kind == "ended":
                self._ended(event.run_id, event.state, event.error)
            self.narrator.progress(self.clock.done, self.clock.total, len(self.clock.over), len(self.runs))
        self.store.write_rows(self._rows())
        if runs and not any(math.isfinite(loss) for loss in self._losses(runs).values()):
            first = self._row(runs[0])
            raise StudyError(
                f"every run at {runs[0].budget:g} FLOPs failed; the first, {first['model']}: {first['error']}"
            )
        return runs

    def _ended(self, run_id: str, state: str, error: str) -> None:
        if state == "storage":
            raise StudyError(error)
        if state == "failed":
            self.failures[run_id] = error
        if error:
            self.narrator.line(f"{self._label(run_id)}: {state}: {error}")
        self.clock.finished(self.runs[run_id])

    def _label(self, run_id: str) -> str:
        run = self.runs.get(run_id)
        return f"{run.model} at {run.budget:g} FLOPs, lr {run.config.optim.learning_rate:g}" if run else "a worker"

    def _row(self, run: PlannedRun) -> Row:
        return self.store.row(run, self.catalogue.source.unique_images, self.failures.get(run.run_id, ""))

    def _rows(self) -> list[Row]:
        return [self._row(run) for run in self.runs.values()]

    def _losses(self, runs: Sequence[PlannedRun] | None = None) -> dict[str, float]:
        chosen = self.runs.values() if runs is None else runs
        return {run.run_id: finite_loss(self._row(run)) for run in chosen}

    def _transfer(self, finals: list[PlannedRun], rows: dict[str, Row]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for run in finals:
            if rows[run.run_id]["status"] != "done":
                continue
            directory = self.store.run_directory(run.run_id)
            for random_weights in (False, True):
                backbone = open_backbone(directory, random_weights=random_weights)
                name = f"{run.model}, random weights" if random_weights else run.model
                results += [
                    {**row, "family": run.family, "pretrained": not random_weights}
                    for row in transfer(backbone, self.config.transfer, name, folder=self.store.directory / "transfer")
                ]
        return results

    def _write_answer(self, document: dict[str, Any]) -> None:
        from isoflop.report import write_report

        machine = environment()
        document["study"] = {
            "name": self.config.study.name,
            "title": self.config.report.title or self.config.study.name,
            "command": self.command,
            "config": self.config.model_dump(mode="json"),
            "created": time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began)),
            "seconds": time.time() - self.began,
            "machine": machine,
            "version": machine["isoflop"],
        }
        self.store.write("answer.json", document)
        rows = self._rows()
        self.store.write_rows(rows)
        finished = [row["run_id"] for row in rows if row["status"] == "done"]
        write_report(rows, document, self.store.curves(finished), self.store.directory / "report.html")


class _Clock:
    """Core-seconds of work: done, and foreseen. The forecast of a rung gives way to its real runs as they are known."""

    def __init__(self, plan: Plan, config: StudyConfig, catalogue: Catalogue) -> None:
        self.per_image = plan.seconds_per_image
        self.rungs = [rung.core_seconds for rung in plan.rungs]
        self._flops = {key: catalogue.flops_per_image(*key) for key in self.per_image}
        self.finals = plan.final_core_seconds(config, catalogue)
        self.later = sum(self.rungs) + self.finals  # of what is not yet known run by run
        self.weights: dict[str, float] = {}  # core-seconds of each known run, without the steps its trunk has
        self.parts: dict[str, float] = {}
        self.over: set[str] = set()
        self._trunks: dict[str, int] = {}

    def begin(self, number: int, runs: Sequence[PlannedRun]) -> None:
        """The runs of rung `number` (from 1; the answers come after the last) are known."""
        self.later = sum(self.rungs[number:]) + (self.finals if number <= len(self.rungs) else 0.0)
        for run in runs:
            shared = self._trunks.get(run.trunk_id or "", 0)
            self.weights[run.run_id] = self.seconds(run) * (1 - shared / run.config.steps)
        for run in runs:
            if run.trunk_id:
                self._trunks[run.trunk_id] = trunk_steps(run.config.schedule, run.config.steps)

    def seconds(self, run: PlannedRun) -> float:
        """What all of `run` should take, from the nearest measured size of its family."""
        sizes = [key for key in self.per_image if key[0] == run.family]
        nearest = min(sizes, key=lambda key: abs(math.log(self._flops[key] / run.flops_per_image)))
        return run.images * self.per_image[nearest]

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
