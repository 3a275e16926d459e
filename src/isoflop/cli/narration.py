"""Terminal output of a study: plan, progress with remaining time, answer, predicted against measured."""

import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from isoflop.cli.answer import tell_answer, tell_grades, tell_hours, tell_transfer
from isoflop.cli.output import duration, is_quiet, over_the_line, power, print_table
from isoflop.cli.predict import tell_evaluation
from isoflop.config import TransferConfig
from isoflop.data import CheckReport
from isoflop.report.rows import contender
from isoflop.report.text import percent
from isoflop.runs.times import Times
from isoflop.study import Narrator
from isoflop.study.adaptive import Funds, Stage
from isoflop.study.plan import Plan
from isoflop.study.planned import PlannedRun
from isoflop.transfer import Evaluation

SECONDS_BETWEEN_LINES = 15.0  # where progress cannot be rewritten in place
TRUST = 20.0


class ResultNarrator(Narrator):
    """Prints the results of a study, its warnings, and nothing else of the way there (`--quiet`)."""

    def line(self, text: str) -> None:
        self.say(text)

    def answered(self, document: dict[str, Any]) -> None:
        self.say("")
        tell_answer(document)

    def graded(self, document: dict[str, Any]) -> None:
        self.say("")
        tell_grades(document)

    def transferred(self, rows: Sequence[dict[str, Any]]) -> None:
        self.say("")
        tell_transfer(rows)

    def ended(self, document: dict[str, Any]) -> None:
        self.say("")
        tell_hours(document)

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


class TerminalNarrator(ResultNarrator):
    """Prints the progress of a study: one updated line on a terminal, an occasional line elsewhere."""

    def __init__(self) -> None:
        self.in_place = sys.stdout.isatty()
        self.workers = 1
        self.start: tuple[float, float] | None = None  # moment and core-seconds done when progress was first told
        self.told = 0.0
        self.number = 0  # of the last rung

    def planned(self, plan: Plan, workers: int) -> None:
        self.workers = workers
        for line in start_lines(plan):
            self.say(line)
        self.say("The first rung:")
        rows = [
            (
                run.family,
                run.model,
                power(run.flops_per_image),
                f"{run.config.steps:,}",
                f"{run.images:,}",
                power(run.config.optim.learning_rate) + (f", {run.recipe}" if run.recipe else ""),
                "–" if (share := plan.utilisation_of(run)) is None else percent(share),
            )
            for run in plan.first
        ]
        print_table(
            ("family", "model", "training FLOPs/image", "steps", "images", "learning rate", "utilisation"), rows
        )
        self._tell_contenders(plan)
        self._tell_left_out(plan)
        if plan.funds:
            self._tell_funds(plan, plan.funds)
        else:
            self._tell_rungs(plan)
        self.say(f"\nPrecision: {plan.precision}.")
        if plan.peak and plan.utilisation is not None:
            self.say(f"Utilisation: {percent(plan.utilisation)} of a worker's peak; {plan.peak}.")
        total, clock = plan.ladder_seconds + plan.final_seconds, plan.clock_seconds(workers)
        most = "At most about" if plan.funds else "About"
        self.say(
            f"\n{most} {duration(sum(clock.values()))} with {workers} at a time, {duration(clock['answer'])} of it to "
            f"train the answer and {duration(clock['everything else'])} for preparation and evaluation."
        )
        if price := plan.catalogue.config.study.price_per_hour:
            self.say(f"{total / 3600:.2g} device-hours cost {total / 3600 * price:.2f} at {price:g} per hour.")

    def _tell_contenders(self, plan: Plan) -> None:
        config = plan.catalogue.config.model_dump(mode="json")
        told = {run.family: run for run in plan.first}
        for family, run in told.items():
            if how := contender(config, family):
                first = run.config.pretraining
                steps = f"; {first.steps:,} steps before {run.config.steps:,} of {run.model}" if first else ""
                self.say(f"{family}: {how}{steps}.")

    def _tell_rungs(self, plan: Plan) -> None:
        self.say("\nThe ladder, in training FLOPs:")
        table = [
            (power(rung.budget), str(rung.runs), power(rung.flops), _minutes(rung.core_seconds / self.workers))
            for rung in plan.rungs
        ]
        flops = sum(rung.flops for rung in plan.rungs)
        runs, minutes = sum(rung.runs for rung in plan.rungs), _minutes(plan.ladder_seconds / self.workers)
        table.append(("all", str(runs), power(flops), minutes))
        print_table(("a run", "runs", "new FLOPs", "minutes"), table)

    def _tell_funds(self, plan: Plan, funds: Funds) -> None:
        every = sum(rung.flops for rung in plan.rungs)
        self.say(f"\nThe limit, {power(funds.total)} {funds.unit}:")
        rows = [
            ("training the answer (reserved)", power(funds.reserved), f"{funds.reserved / funds.total:.0%}"),
            ("preparation and evaluation", power(funds.beside), f"{funds.beside / funds.total:.0%}"),
            ("the ladder", power(funds.allowance), f"{funds.allowance / funds.total:.0%}"),
        ]
        print_table(("what for", funds.unit, "share"), rows)
        self.say(
            f"\nThe ladder's rungs: {', '.join(power(budget) for budget in plan.catalogue.budgets)} FLOPs per run.\n"
            f"The first rung has {len(plan.first)} runs of all families, the second one run per size. Later runs\n"
            f"reduce the uncertainty of the answer; every size on every rung would take {power(every)} FLOPs."
        )

    def thought(self, stage: Stage, before: Stage | None) -> None:
        if not stage.outlook:
            return
        standings = stage.outlook.standings
        told = ", ".join(
            f"{s.answer.family} {s.p_best:.2f} ({s.answer.model}, loss {math.exp(s.log_loss):.3f})" for s in standings
        )
        self.say(f"P(best): {told}")
        for family in stage.dropped:
            if not before or family not in before.dropped:
                self.say(f"dropped {family}: P(best) {stage.outlook.p_best(family):.2f}")
        if stage.stop:
            self.say(f"the ladder ends: {stage.stop} (expected regret {stage.outlook.regret:.4f})")
        elif stage.gain:
            runs = Counter((trial.model, trial.budget) for trial in stage.trials)
            listed = ", ".join(
                f"{model} at {power(budget)}" + (f" ×{count}" if count > 1 else "")
                for (model, budget), count in runs.items()
            )
            regret = stage.outlook.regret
            self.say(
                f"next: {len(stage.trials)} runs ({listed}): expected regret {regret:.4f} → "
                f"{max(regret - stage.gain, 0.0):.4f}"
            )

    def rung(self, number: int, count: int | None, runs: Sequence[PlannedRun]) -> None:
        if number == count:
            self.say(f"rung {number} of {count}, {power(runs[0].budget)} FLOPs: the answer")
            return
        budgets = [run.budget for run in runs]
        low, high = power(min(budgets)), power(max(budgets))
        span = low if low == high else f"{low} to {high}"
        what = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
        if number == self.number:
            what += " at wider learning rates"
        self.number = number
        self.say(
            f"rung {number} of {count}, {span} FLOPs: {what}" if count else f"stage {number}, {span} FLOPs: {what}"
        )

    def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
        now = time.monotonic()
        if self.start is None:
            self.start = (now, done_seconds)
        if not self.in_place and now - self.told < SECONDS_BETWEEN_LINES:
            return
        self.told = now
        share = done_seconds / total_seconds if total_seconds > 0 else 0.0
        began, done_before = self.start
        # The forecast counts like TRUST seconds of measured pace: at first, workers are starting and nothing is done.
        pace = (now - began + TRUST) / ((done_seconds - done_before) / self.workers + TRUST)
        left = duration((total_seconds - done_seconds) / self.workers * pace)
        text = f"{share:4.0%}  {finished} of {total} runs, {left} left"
        text += f", utilisation {percent(self.utilisation)}" if self.utilisation else ""
        self._tell_progress(text)

    def _tell_progress(self, text: str) -> None:
        if self.in_place:
            over_the_line(text)
        else:
            print(text, flush=True)

    def _tell_left_out(self, plan: Plan) -> None:
        for family, why in plan.ladder.left_out.items():
            self.say(f"{family} is left out: {why}")

    def judged(self, name: str, task: TransferConfig) -> None:
        self.say(f"{name} on {task.dataset}: {', '.join(task.protocols)}")

    def say(self, text: str) -> None:
        """Print a line, overwriting the progress line if there is one."""
        if self.in_place:
            over_the_line(text, end="\n")
        else:
            super().say(text)


class BarNarrator(TerminalNarrator):
    """What `isoflop auto` tells: what the data are, the plan in a sentence, one bar with the time left, the confusion.

    The time left is what the clock leaves of the limit: runs are chosen to fill it. While the answer is trained, its
    own pace takes over from there, so that nothing jumps.
    """

    def __init__(self, times: Times) -> None:
        super().__init__()
        self.times = times
        self.planned_seconds = 0.0
        self.answer: tuple[float, float, float] | None = None  # seconds and work done when it began, seconds left then
        self.at_answer = False

    def checking(self, done: int, total: int) -> None:
        if self.in_place and not is_quiet():
            over_the_line(f"checking {done:,} of {total:,} images")

    def checked(self, report: CheckReport) -> None:
        if not is_quiet():
            self.say("\n".join(report.lines(5)))

    def planned(self, plan: Plan, workers: int) -> None:
        self.workers = workers
        config = plan.catalogue.config
        limit, clock = config.study.hours, plan.clock_seconds(workers)
        done = self.times.total
        whole = sum(clock.values())
        self.planned_seconds = 3600 * limit if limit and plan.funds and plan.funds.open_ended else done + whole
        if is_quiet():
            return
        left, training = max(self.planned_seconds - done, 0.0), len(plan.catalogue.source)
        answer = f", {duration(clock['answer'])} of it to train the answer" if clock["answer"] < left else ""
        self._tell_left_out(plan)
        sizes: dict[int, str] = {}
        for family in config.families:
            size = plan.catalogue.image_size(family)
            sizes[size] = f"{sizes[size]}, {family}" if size in sizes else family
        for line in start_lines(plan):
            self.say(line)
        self.say(
            f"plan: {'; '.join(f'{names} at {size} px' for size, names in sizes.items())}, on {training:,} images, "
            f"{plan.catalogue.heldout:,} others to choose by; about {duration(left)}{answer}"
        )

    def thought(self, stage: Stage, before: Stage | None) -> None: ...

    def rung(self, number: int, count: int | None, runs: Sequence[PlannedRun]) -> None:
        self.at_answer = number == count

    def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
        now = time.monotonic()
        if is_quiet() or (not self.in_place and now - self.told < SECONDS_BETWEEN_LINES):
            return
        self.told = now
        spent = self.times.total
        left = max(self.planned_seconds - spent, TRUST)  # the answer is trained whatever the ladder has taken
        if self.at_answer:
            self.answer = self.answer or (spent, done_seconds, left)
            began, before, left_then = self.answer
            share = (done_seconds - before) / (total_seconds - before) if total_seconds > before else 1.0
            # What the clock left counts like a quarter of the answer, at the pace that takes as long.
            left = (1 - share) * (spent - began + left_then / 4) / (share + 1 / 4)
        share = spent / (spent + left) if spent + left > 0 else 1.0
        filled = round(share * BAR)
        what = "training the answer" if self.at_answer else f"{finished} run{'' if finished == 1 else 's'} compared"
        text = f"[{'█' * filled}{'·' * (BAR - filled)}] {share:4.0%}  {duration(left)} left, {what}"
        self._tell_progress(text)

    def answered(self, document: dict[str, Any]) -> None: ...

    def graded(self, document: dict[str, Any]) -> None: ...

    def transferred(self, rows: Sequence[dict[str, Any]]) -> None: ...

    def ended(self, document: dict[str, Any]) -> None: ...

    def evaluated(self, found: Evaluation) -> None:
        self.say("")
        tell_evaluation(found)


BAR = 30  # characters


def start_lines(plan: Plan) -> list[str]:
    """Of the weights that families start from: what they are, and how good they are as they are."""
    lines = []
    for family, start in plan.catalogue.starts.items():
        found = start.summary
        licence = f", licence {found['licence']}" if found["licence"] else ""
        probe = found["probe"]
        good = (
            f": {probe['accuracy']:.1%} of {probe['judged']:,} held-out images by logistic regression on frozen "
            f"features of {probe['images']:,}"
            if probe
            else ""
        )
        lines.append(f"{family} starts from {found['weights']} at {found['image_size']} px{licence}{good}")
    return lines


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"
