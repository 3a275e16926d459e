"""A study from plan to report, resumable at any point."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from isoflop.config import Loaded, StudyConfig, TransferConfig, plain
from isoflop.data import CheckReport
from isoflop.errors import Preempted, StudyError
from isoflop.report.savings import own_cost
from isoflop.runs.lock import sole_writer
from isoflop.runs.results import Row, judged
from isoflop.runs.times import Times
from isoflop.study.adaptive import Outlook, Stage, decide, next_stage
from isoflop.study.answer import (
    Answer,
    answer_document,
    answer_from,
    grade,
    hours_document,
    labels_document,
    planner_document,
    spending,
)
from isoflop.study.executors import Executor, RunTask, make_executor
from isoflop.study.handover import accuracy_of, attention_of, compared_with_runs, predicted_accuracy, selected_run
from isoflop.study.plan import Plan, believed, plan_study, search_space_of, time_answer
from isoflop.study.planned import PlannedRun
from isoflop.study.rungs import MAX_EXTENSIONS, Losses, extensions, next_rung, runs_on_shares
from isoflop.study.search_space import Ledger, TrialResult
from isoflop.study.store import Store, finite_loss
from isoflop.train.device import choose_device
from isoflop.train.identity import environment
from isoflop.train.optim.build import trunk_steps
from isoflop.transfer import Evaluation, open_backbone, transfer

# What a study reports while it works. The base class prints nothing; the command line overrides it.


class Narrator:
    """Listens to a study. Every method may be left as it is."""

    def checking(self, done: int, total: int) -> None:
        """Of `auto`: so many of the images are checked."""

    def checked(self, report: CheckReport) -> None:
        """Of `auto`: what the check of the images has found."""

    def planned(self, plan: Plan, workers: int) -> None:
        """Before anything is trained."""

    def thought(self, stage: Stage, before: Stage | None) -> None:
        """What the finished runs say and which runs follow from it; `before` is what was thought a stage earlier."""

    def rung(self, number: int, count: int | None, runs: Sequence[PlannedRun]) -> None:
        """Runs are about to be trained that were not done yet; stage `number` of `count`, the answers last.

        Nobody knows the count of an adaptive study before its end.
        """

    utilisation: float | None = None
    """Training FLOPs of the stage so far as a share of what its workers' peak gives in the time since; set before
    `progress` is called."""

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

    def ended(self, document: dict[str, Any]) -> None:
        """All is done: hours planned and spent."""

    def evaluated(self, found: Evaluation) -> None:
        """Of `auto`: the run that is handed over, on the test part."""


# The stages of a study, one after another: fixed rungs, or batches that are chosen for what they are worth.


SMALLEST_BATCH = 6  # runs that are chosen together however few workers there are


@dataclass(frozen=True)
class Ended:
    """How a run ended: its loss (+inf if it diverged or failed). `seconds` are those that it trained itself, on
    `images`: without its trunk's."""

    loss: float
    images: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class StageRuns:
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


TimeAnswer = Callable[[str, str], float]


def stages(
    plan: Plan,
    ended: Callable[[], Mapping[str, Ended]],
    batch: int,
    elapsed: Callable[[int], float] = lambda stage: 0.0,
    timed: TimeAnswer | None = None,
) -> Iterator[StageRuns]:
    """The ladder of `plan`; `ended` gives by id how runs have ended so far, `batch` is the number of workers, `elapsed`
    the hours by the clock at the end of a stage of the ladder, which is kept. `timed` gives the seconds of a worker in
    which an answer of a family and model trains on an image, where they are to be measured; they are kept, too.

    What comes depends on nothing but the plan, `batch`, how runs ended and what a stage took: a study that was stopped
    goes through the same stages again, and finds their runs done.
    """
    if plan.space:
        return _adaptive(plan, ended, batch, elapsed, timed)
    return _fixed(plan, lambda: {run_id: end.loss for run_id, end in ended().items()})


def _fixed(plan: Plan, losses: Callable[[], Losses]) -> Iterator[StageRuns]:
    catalogue, shares = plan.catalogue, plan.catalogue.config.study.images or ()
    count = len(plan.rungs) + 1 + bool(shares)
    later = [sum(rung.core_seconds for rung in plan.rungs[number:]) for number in range(count)]
    rung = plan.first
    yield StageRuns(rung, 1, count, later[1])
    known = {run.run_id for run in rung}
    for _ in range(MAX_EXTENSIONS):
        more = [run for run in extensions(rung, losses(), catalogue) if run.run_id not in known]
        if not more:
            break
        yield StageRuns(more, 1, count, later[1])
        rung = rung + more
        known |= {run.run_id for run in more}
    for number in range(1, len(plan.rungs)):
        rung = next_rung(number, catalogue.config, catalogue, plan.sizes, rung, losses())
        yield StageRuns(rung, number + 1, count, later[number + 1])
    if shares:
        yield StageRuns(runs_on_shares(shares, rung, losses(), catalogue), count - 1, count, 0.0)


def _adaptive(
    plan: Plan,
    ended: Callable[[], Mapping[str, Ended]],
    batch: int,
    elapsed: Callable[[int], float],
    timed: TimeAnswer | None,
) -> Iterator[StageRuns]:
    assert plan.space
    assert plan.funds
    size, number = max(batch, SMALLEST_BATCH), 0
    results: list[TrialResult] = []
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    passed, accounted = 0.0, 0.0  # hours by the clock, and those that runs account for: workers wait, start and fit
    while True:
        now = plan.priced(measured)  # by the runs of earlier stages alone: a study that goes on sees the same prices
        assert now.space
        assert now.funds
        allowance = now.funds.allowance
        if passed > accounted > 0:  # what is to come will take as much longer than its runs
            allowance = accounted + (allowance - passed) * accounted / passed
        stage = next_stage(now.space, results, allowance, size)
        number += 1
        runs = list(map(plan.catalogue.run_of, stage.trials))
        later = now.ladder_seconds * max(0.0, 1 - stage.spent / allowance) if allowance > 0 else 0.0
        if stage.stop and now.funds.open_ended:  # they get all that the ladder left
            left = now.funds.total - now.funds.beside - max(stage.spent, passed)
            answering, outlook = _answering(now, results, left, timed)
            yield StageRuns(runs, number, None, later, replace(stage, outlook=outlook), answering)
            return
        yield StageRuns(runs, number, None, later, stage, now)
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
        results += [TrialResult(t, end.loss, cost) for t, end, cost in zip(stage.trials, ends, costs, strict=True)]
        if now.funds.unit == "hours":
            passed, accounted = elapsed(number), sum(map(Ledger(now.space).spent, results))


TIMED_ANSWERS = 6  # models, at most
LARGER = 4.0  # times the FLOPs of the answer: so much larger a model is timed beside it


def _answering(
    plan: Plan, results: Sequence[TrialResult], left: float, timed: TimeAnswer | None
) -> tuple[Plan, Outlook]:
    """How the families stand when answers share what is `left`, and `plan` with the prices of those that were timed.

    The runs of the ladder are small and short, and a larger model uses a machine better: the answer is timed, and one
    of its family that is `LARGER`; where another one is the answer then, that and one larger, too.
    """
    catalogue = plan.catalogue
    known: set[str] = set()
    while True:
        assert plan.funds
        space = search_space_of(catalogue.config, catalogue, plan.sizes, plan.funds, left)
        outlook = decide(space, results).outlook()
        answer = outlook.standings[0].answer
        family, sizes = answer.family, space.families[answer.family].answers
        larger = min(sizes, key=lambda name: abs(math.log(sizes[name] / (LARGER * answer.n))))
        wanted = [name for name in dict.fromkeys((answer.model, larger)) if f"{family}/{name}" not in known]
        if timed is None or not wanted or len(known) >= TIMED_ANSWERS:
            return plan, outlook
        for name in wanted:
            known.add(f"{family}/{name}")
            seconds = timed(family, name)
            prices = {**plan.seconds_per_image, (family, name): seconds}
            plan = replace(
                plan, seconds_per_image=prices, funds=plan.funds.at_price((family, name), sizes[name], seconds)
            )
            assert plan.funds


SECONDS_BETWEEN_TIMES = 10.0  # that are written: so much of its hours a study that is killed may forget

# Core-seconds of work: done, and foreseen.


class Clock:
    """Core-seconds of all known runs, without the steps that their trunks have, and of what is foreseen after them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.later = plan.ladder_seconds + plan.final_seconds  # of what is not yet known run by run
        self.weights: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.over: set[str] = set()
        self._run_flops: dict[str, float] = {}
        self._trunks: dict[str, int] = {}

    def begin(self, runs: Sequence[PlannedRun], later: float) -> None:
        """`runs` are known, and after them `later` core-seconds are foreseen."""
        self.later = later
        for run in runs:
            shared = self._trunks.get(run.trunk_id or "", 0)
            own = 1 - min(shared / run.config.steps, 1)
            self.weights[run.run_id] = self.seconds(run) * own
            self._run_flops[run.run_id] = run.train_flops * own
        for run in runs:
            if run.trunk_id:
                reached = trunk_steps(run.config.schedule, run.config.steps)
                self._trunks[run.trunk_id] = max(reached, self._trunks.get(run.trunk_id, 0))

    def seconds(self, run: PlannedRun) -> float:
        """What all of `run` should take."""
        return run.images * self.plan.seconds_an_image(run.family, run.flops_per_image)

    def at(self, run: PlannedRun, step: int, phase: str = "") -> None:
        done, first = step / run.config.steps, run.config.pretraining
        if first:
            share = run.pretraining_share
            done = share * step / first.steps if phase else share + (1 - share) * done
        self.parts[run.run_id] = self.weights[run.run_id] * done

    def finished(self, run: PlannedRun) -> None:
        self.parts[run.run_id] = self.weights[run.run_id]
        self.over.add(run.run_id)

    @property
    def flops(self) -> float:
        """Training FLOPs of the work done."""
        return sum(part / self.weights[run] * self._run_flops[run] for run, part in self.parts.items() if part)

    @property
    def done(self) -> float:
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        return sum(self.weights.values()) + self.later


def run_study(
    config: StudyConfig | Loaded[StudyConfig],
    narrator: Narrator | None = None,
    *,
    command: str = "",
    executor: Executor | None = None,
    stop: Callable[[], bool] = lambda: False,
    times: Times | None = None,
    predict: bool = False,
    evaluated: Callable[[Evaluation], None] = lambda _: None,
) -> dict[str, Any]:
    """Plans, trains, fits, answers, trains the answer, transfers it and writes the report; returns the answer document.

    Everything lies in `config.directory`. Runs that are done are not trained again, interrupted ones are resumed.
    `executor` trains them in the place of the one that `config` names. Once `stop` says yes, the runs that are trained
    save a checkpoint, and Preempted is raised. `times` counts the study's hours, for who began to count before. With
    `predict` it ends when the answers are predicted and written down, before they are trained; without it, it goes on.
    `evaluated` takes the evaluation of what is handed over on the test part, which is made once.

    Raises StudyError, ConfigError, DataError, ModelError before anything is trained when the study cannot be;
    StudyError later when the storage fails or no family has enough finished runs to be answered.
    """
    config, times = plain(config), times or Times()
    store = Store(config.directory, config.target.protocol(config.transfer))
    with executor or make_executor(config, stop) as team:  # first: a cluster that does not answer is told at once
        # What cannot be planned is refused before anything is written.
        plan = plan_study(config, store.prices(), store.begun_at(config), store.overheads(), times, store.ladder())
        with sole_writer(config.directory, StudyError):
            store.claim(plan.catalogue.config, plan.catalogue.source.fingerprint)
            peak = plan.peak.fastest if plan.peak else None
            store.write_prices(plan.seconds_per_image, peak, plan.overheads, plan.ladder)
            times.add_earlier(config.directory)
            return _Study(plan, store, narrator or Narrator(), team, command, stop, times, evaluated).run(predict)


class _Study:
    """One attempt at a study."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        narrator: Narrator,
        executor: Executor,
        command: str,
        stop: Callable[[], bool],
        times: Times,
        evaluated: Callable[[Evaluation], None],
    ) -> None:
        self.evaluated = evaluated
        self.stop = stop
        self.times = times
        self.written = times.now()  # when the times were
        self.worked = False  # whether this attempt has trained anything
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

    def run(self, predict: bool) -> dict[str, Any]:
        config, plan = self.config, self.plan
        self.narrator.planned(plan, self.executor.workers)
        last: StageRuns | None = None
        self.times.begin("ladder")
        timed = self._timed if config.study.executor == "local" else None  # where the answer will be trained
        for batch in stages(plan, self._ends, self.executor.workers, self._hours_at, timed):
            if batch.thought:
                self.narrator.thought(batch.thought, last.thought if last else None)
            self._train(batch)
            last = batch
        assert last

        self.times.begin("evaluation")
        outlook = last.thought.outlook if last.thought else None
        open_ended = plan.funds is not None and plan.funds.open_ended
        answer = self._answer(outlook, open_ended)
        document = answer_document(answer)
        document["left_out"] |= plan.ladder.left_out
        if config.study.images:
            document["labels"] = labels_document(self._rows(), document["best"], config.laws.level)
        document["starts"] = {name: start.summary for name, start in self.catalogue.starts.items()}
        self.clock.plan = priced = last.plan or plan  # the answer, as it was timed
        document["planner"] = planner_document(priced, last.thought, self._rows(), self.times)
        document |= compared_with_runs(document, self._rows(), config)
        for family, entry in document["families"].items():
            entry |= predicted_accuracy(self._rows(), entry)
            entry["hours"] = priced.answer_seconds(family, entry["flops_per_image"], entry["images"]) / 3600
        self._write_answer(document)
        self.narrator.answered(document)
        if predict:
            self.times.write(self.store.directory)
            return document
        finals = self._affordable([family.run for family in answer.families[: config.study.finals]], priced)
        threads = self.executor.cores // len(finals) if choose_device(config.device).type == "cpu" else 1
        finals = [self._as_begun(run).on_threads(threads) for run in finals]
        for run in finals:
            document["families"][run.family]["run_id"] = run.run_id
        self.times.begin("answer")
        self._train(StageRuns(finals, last.number + 1, last.number + 1, 0.0))
        self.times.begin("evaluation")
        self.store.drop_trunks()
        rows = {row["run_id"]: row for row in self._rows()}
        document["spent"] = spending(list(rows.values()))
        document = grade(document, {run.family: rows[run.run_id] for run in finals})
        document |= selected_run(document, list(rows.values()), config)
        if selected := document["selected"]:
            directory = self.store.run_directory(selected["run_id"])
            selected["accuracy"] = accuracy_of(directory, selected, config, self.catalogue.heldout, self.evaluated)
            document["attention"] = attention_of(directory)
        self._write_answer(document)
        self.narrator.graded(document)
        if self.config.has_transfer:
            document["transfer"] = {"rows": self._transfer(document["finals"], rows)}
            self.narrator.transferred(document["transfer"]["rows"])
        if self.worked:
            self.times.write(self.store.directory)
        else:  # an attempt that finds all done is not a part of the study
            self.times = Times(self.times.now)
            self.times.add_earlier(self.store.directory)
        document["planner"] = planner_document(priced, last.thought, list(rows.values()), self.times)
        document["hours"] = hours_document(plan, self.executor.workers, self.times)
        self._write_answer(document)
        self.narrator.ended(document)
        return document

    def _answer(self, outlook: Outlook | None, open_ended: bool) -> Answer:
        """What the ladder's runs give."""
        rows = self._rows()
        if outlook is not None:
            return answer_from(self.config, self.catalogue, rows, outlook, open_ended=open_ended)
        if not any(math.isfinite(finite_loss(row)) for row in rows):
            return answer_from(self.config, self.catalogue, rows)  # which says why there is none
        losses = {run_id: end.loss for run_id, end in self._ends().items()}
        outlook = believed(self.plan, self.runs.values(), losses)
        return answer_from(self.config, self.catalogue, rows, outlook, adaptive=False)

    def _timed(self, family: str, model: str) -> float:
        """Seconds of a worker of this machine in which an answer trains on an image, measured on its threads."""
        answers = self.store.answer_prices()
        key = f"{family}/{model}"
        if key not in answers:
            overheads = self.plan.overheads
            answers[key] = time_answer(self.catalogue, family, model, overheads.threads) / (overheads.share or 1.0)
            self.store.write_answer_prices(answers)
        return answers[key]

    def _hours_at(self, stage: int) -> float:
        hours = self.times.stage(stage) / 3600
        if self.worked:
            self.times.write(self.store.directory)
        return hours

    def _as_begun(self, final: PlannedRun) -> PlannedRun:
        """`final`, or as an earlier version has begun to train it: without evaluations on the way."""
        config = final.config.model_copy(update={"evaluation": self.config.evaluation})
        earlier = replace(final, config=config)
        return earlier if (self.store.run_directory(earlier.run_id) / "identity.json").exists() else final

    def _affordable(self, finals: list[PlannedRun], plan: Plan) -> list[PlannedRun]:
        """Those answers that the limit still pays for, the best in any case; says what is cut or exceeded."""
        if plan.funds is None:
            return finals
        left = plan.funds.total - plan.funds.spent(self._rows(), self.times)
        if plan.funds.unit == "hours":  # those of the answers, before a stop, are a part of their price
            left += self.times.seconds["answer"] / 3600
        kept: list[PlannedRun] = []
        for run in finals:
            if (self.store.run_directory(self._as_begun(run).run_id) / "identity.json").exists():
                kept.append(run)
                continue
            price = plan.funds.price_of_answer(run.family, run.flops_per_image, run.images)
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

    def _train(self, batch: StageRuns) -> None:
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
            RunTask(
                run,
                self.store.run_directory(run.run_id),
                self.store.trunk_directory(run),
                self.store.target,
                self.clock.seconds(run),
            )
            for run in todo
        ]
        self._check_stop()
        began = time.monotonic(), self.clock.flops
        for event in self.executor.run(tasks):
            if event.kind in ("died", "warning"):
                self.narrator.line(f"{self._label(event.run_id)}: {event.error}")
            elif event.kind == "progress":
                self.clock.at(self.runs[event.run_id], event.step, event.phase)
            elif event.kind == "ended":
                self._ended(event.run_id, event.state, event.error)
            if self.times.now() - self.written > SECONDS_BETWEEN_TIMES:
                self.times.write(self.store.directory)
                self.written = self.times.now()
            self.narrator.utilisation = self._utilisation(began)
            self.narrator.progress(self.clock.done, self.clock.total, len(self.clock.over), len(self.runs))
        self.store.write_rows(self._rows())
        if todo:
            self.worked = True
            self.times.write(self.store.directory)
        self._check_stop()
        # Later batches of an adaptive study may be a few daring learning rates, and nothing is lost if all diverge.
        whole_rung = batch.thought is None or batch.number == 1
        if runs and whole_rung and not any(math.isfinite(loss) for loss in self._losses(runs).values()):
            first = self._row(runs[0])
            raise StudyError(
                f"every run at {runs[0].budget:g} FLOPs failed; the first, {first['model']}: {first['error']}"
            )

    def _utilisation(self, began: tuple[float, float]) -> float | None:
        seconds = (time.monotonic() - began[0]) * self.executor.workers
        trained = self.clock.flops - began[1]
        return trained / (seconds * self.store.peak) if self.store.peak and seconds > 0 else None

    def _check_stop(self) -> None:
        if self.stop():
            raise Preempted(f"{self.store.directory}: asked to stop; the runs in progress are saved")

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
        unique = run.config.data.images or self.catalogue.source.unique_images
        return self.store.row(run, unique, self.failures.get(run.run_id, ""))

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

    def _transfer(self, finals: Mapping[str, Any], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
        """What is handed over of each family that has a trained answer, on the transfer task."""
        results: list[dict[str, Any]] = []
        for family, final in finals.items():
            self._check_stop()
            if not final["selected"]:
                continue
            directory, model = self.store.run_directory(final["selected"]), rows[final["selected"]]["model"]
            for random_weights in (False, True):
                backbone = open_backbone(directory, random_weights=random_weights)
                name = f"{model}, random weights" if random_weights else model
                self.narrator.judged(name, self.config.transfer)
                results += [
                    {**row, "family": family, "pretrained": not random_weights}
                    for row in transfer(backbone, self.config.transfer, name, folder=self.store.directory / "transfer")
                ]
        return results

    def _write_answer(self, document: dict[str, Any]) -> None:
        from isoflop.report.result import write_study_report

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
        write_study_report(self.store.directory, judged(rows), document)
