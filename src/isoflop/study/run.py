"""A whole study, from plan to report. Stopped anywhere and started again, it goes on where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from isoflop.config import Loaded, StudyConfig, plain
from isoflop.errors import Preempted, StudyError
from isoflop.report.savings import own_cost
from isoflop.runs.lock import sole_writer
from isoflop.runs.results import Row, judged
from isoflop.study.answer import answer_document, answer_from, grade, planner_document, spending
from isoflop.study.clock import Clock
from isoflop.study.executors import Executor, Task, make_executor
from isoflop.study.narrator import Narrator
from isoflop.study.plan import Plan, plan_study
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.stages import Batch, Ended, stages
from isoflop.study.store import Store, finite_loss
from isoflop.train.identity import environment
from isoflop.transfer import open_backbone, transfer


def run_study(
    config: StudyConfig | Loaded[StudyConfig],
    narrator: Narrator | None = None,
    *,
    command: str = "",
    executor: Executor | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Plans, trains, fits, answers, trains the answer, transfers it and writes the report; returns the answer document.

    Everything lies in `config.directory`. Runs that are done are not trained again, interrupted ones are resumed.
    `executor` trains them in the place of the one that `config` names. Once `stop` says yes, the runs that are trained
    save a checkpoint, and Preempted is raised.

    Raises StudyError, ConfigError, DataError, ModelError before anything is trained when the study cannot be;
    StudyError later when the storage fails or no family has enough finished runs to be answered.
    """
    config = plain(config)
    store = Store(config.directory, config.target.protocol(config.transfer))
    with executor or make_executor(config, stop) as team:  # first: a cluster that does not answer is told at once
        catalogue = Catalogue(config, store.begun_at(config))
        # What cannot be planned is refused before anything is written.
        plan = plan_study(config, catalogue, store.prices())
        with sole_writer(config.directory, StudyError):
            store.claim(config, catalogue.source.fingerprint)
            store.write_prices(plan.seconds_per_image)
            return _Study(plan, store, narrator or Narrator(), team, command, stop).run()


class _Study:
    """One attempt at a study."""

    def __init__(
        self, plan: Plan, store: Store, narrator: Narrator, executor: Executor, command: str, stop: Callable[[], bool]
    ) -> None:
        self.stop = stop
        self.plan = plan
        self.catalogue = plan.catalogue
        self.config = plan.catalogue.config
        self.store = store
        self.narrator = narrator
        self.executor = executor
        self.command = command
        self.runs: dict[str, PlannedRun] = {}
        self.failures: dict[str, str] = {}
        self.clock = Clock(plan)
        self.began = time.time()

    def run(self) -> dict[str, Any]:
        config, plan = self.config, self.plan
        self.narrator.planned(plan, self.executor.workers)
        last: Batch | None = None
        for batch in stages(plan, self._ends, self.executor.workers):
            if batch.thought:
                self.narrator.thought(batch.thought, last.thought if last else None)
            self._train(batch)
            last = batch
        assert last

        outlook = last.thought.outlook if last.thought else None
        answer = answer_from(config, self.catalogue, self._rows(), outlook)
        document = answer_document(answer)
        priced = last.plan or plan
        document["planner"] = planner_document(priced, last.thought, self._rows())
        self._write_answer(document)
        self.narrator.answered(document)
        finals = self._affordable([family.run for family in answer.families[: config.study.finals]], priced)
        self._train(Batch(finals, last.number + 1, last.number + 1, 0.0))
        self.store.drop_trunks()
        rows = {row["run_id"]: row for row in self._rows()}
        document["spent"] = spending(list(rows.values()))
        document["planner"] = planner_document(priced, last.thought, list(rows.values()))
        document = grade(document, {run.family: rows[run.run_id] for run in finals})
        self._write_answer(document)
        self.narrator.graded(document)
        document["transfer"] = {"rows": self._transfer(finals, rows)}
        self.narrator.transferred(document["transfer"]["rows"])
        self._write_answer(document)
        return document

    def _affordable(self, finals: list[PlannedRun], plan: Plan) -> list[PlannedRun]:
        """Those answers that the limit still pays for, the best in any case; says what is cut or exceeded."""
        if plan.funds is None:
            return finals
        left = plan.funds.total - plan.funds.spent(self._rows())
        kept: list[PlannedRun] = []
        for run in finals:
            price = run.images * plan.funds.price(run.family, run.flops_per_image)
            price += plan.funds.price_of_evaluation(run.family, run.flops_per_image)
            if price <= left or not kept:
                kept.append(run)
            if price > left:
                what = "the limit will be exceeded" if run in kept else "more than is left, so it is not trained"
                self.narrator.line(
                    f"warning: training the answer {run.model} takes about {price:.2g} {plan.funds.unit} of the "
                    f"{max(left, 0.0):.2g} that are left: {what}"
                )
            left -= price if run in kept else 0.0
        return kept

    def _train(self, batch: Batch) -> None:
        """Trains those runs of `batch` that are not done."""
        runs = batch.runs
        self.runs |= {run.run_id: run for run in runs}
        finals = self.plan.final_seconds if batch.number != batch.count else 0.0
        self.clock.begin(runs, batch.later + finals)
        self.store.write_rows(self._rows())
        todo = [run for run in runs if self._row(run)["status"] not in ("done", "diverged")]
        todo.sort(key=self.clock.seconds, reverse=True)
        if todo:
            self.narrator.rung(batch.number, batch.count, todo)
        for run in runs:
            if run not in todo:
                self.clock.finished(run)
        tasks = [
            Task(
                run,
                self.store.run_directory(run.run_id),
                self.store.trunk_directory(run),
                self.store.target,
                self.clock.seconds(run),
            )
            for run in todo
        ]
        self._check_stop()
        for event in self.executor.run(tasks):
            if event.kind in ("died", "warning"):
                self.narrator.line(f"{self._label(event.run_id)}: {event.error}")
            elif event.kind == "progress":
                self.clock.at(self.runs[event.run_id], event.step)
            elif event.kind == "ended":
                self._ended(event.run_id, event.state, event.error)
            self.narrator.progress(self.clock.done, self.clock.total, len(self.clock.over), len(self.runs))
        self.store.write_rows(self._rows())
        self._check_stop()
        # Later batches of an adaptive study may be a few daring learning rates, and nothing is lost if all diverge.
        whole_rung = batch.thought is None or batch.number == 1
        if runs and whole_rung and not any(math.isfinite(loss) for loss in self._losses(runs).values()):
            first = self._row(runs[0])
            raise StudyError(
                f"every run at {runs[0].budget:g} FLOPs failed; the first, {first['model']}: {first['error']}"
            )

    def _check_stop(self) -> None:
        if self.stop():
            raise Preempted(f"{self.store.directory}: asked to stop; what was being trained is saved")

    def _ended(self, run_id: str, state: str, error: str) -> None:
        if state == "storage":
            raise StudyError(error)
        if state == "preempted":
            return
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

    def _ends(self) -> dict[str, Ended]:
        ends = {}
        for run in self.runs.values():
            row = self._row(run)
            flops, seconds = own_cost(row)
            took = seconds if row["seconds"] is not None else None
            ends[run.run_id] = Ended(finite_loss(row), flops / run.flops_per_image, took)
        return ends

    def _transfer(self, finals: list[PlannedRun], rows: dict[str, Row]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for run in finals:
            self._check_stop()
            if rows[run.run_id]["status"] != "done":
                continue
            directory = self.store.run_directory(run.run_id)
            for random_weights in (False, True):
                backbone = open_backbone(directory, random_weights=random_weights)
                name = f"{run.model}, random weights" if random_weights else run.model
                self.narrator.judged(name, self.config.transfer)
                results += [
                    {**row, "family": run.family, "pretrained": not random_weights}
                    for row in transfer(backbone, self.config.transfer, name, folder=self.store.directory / "transfer")
                ]
        return results

    def _write_answer(self, document: dict[str, Any]) -> None:
        from isoflop.report import write_report
        from isoflop.report.inspection.masked import reconstruction_pictures
        from isoflop.report.watch.tail import read_curves

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
        shown, directory = judged(rows), self.store.directory
        pictures, curves = reconstruction_pictures(directory, shown), read_curves(directory, shown)
        write_report(shown, document, curves, directory / "report.html", pictures)
