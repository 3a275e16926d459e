"""Runs that will not become the best of their rung are stopped, others hardly ever, and the same ones every time."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.study import Store, run_study, stages
from isoflop.study.adaptive import Stage, next_stage
from isoflop.study.arena import Ledger, Result
from isoflop.study.belief import Trial
from isoflop.study.hopeless import TIE, limits, stopped
from isoflop.train.halfway import SHARE, Limit, halfway
from tests.study.here import Here
from tests.study.test_adaptive import ALLOWANCE, BUDGETS, SIZES, arena, planted
from tests.study.test_study import Listener, toy_study

NOISE = 0.04


def curve(trial: Trial, seed: int) -> tuple[float, float]:
    """Loss halfway and at the end: a cooldown that gains more at high rates, and noise that is half the same."""
    rng = np.random.default_rng([seed, int(trial.n), int(trial.d), int(trial.rate * 1e6), trial.copy])
    luck, wobble = NOISE * rng.standard_normal(2)
    middle = planted(replace(trial, d=0.375 * trial.d)) * math.exp(0.1 * (trial.rate / 0.02) ** 0.3 + luck / 2 + wobble)
    return middle, planted(trial) * math.exp(luck)


def replayed(seed: int, give_up: float) -> tuple[list[Result], dict[Trial, float]]:
    """A study of planted curves: how its runs ended, and what those that were stopped would have ended with."""
    question, results, truths = arena(give_up=give_up), list[Result](), dict[Trial, float]()
    while not (stage := next_stage(question, results, ALLOWANCE, 6)).stop:
        before = tuple(results)
        for trial in stage.trials:
            middle, end = curve(trial, seed)
            limit = stage.limits.get(trial)
            if limit and middle > limit.loss:
                truths[trial] = end
                results.append(stopped(trial, middle, before, SHARE))
            else:
                results.append(Result(trial, end, middle))
    return results, truths


def best_of_rung(trial: Trial) -> float:
    """The lowest loss, without noise, of any size at any rate tried with the budget of `trial`."""
    sizes = [arena().trial(trial.family, model, trial.budget, 1.0) for model in SIZES]
    return min(planted(replace(at, rate=rate)) for at in sizes for rate in (0.01, 0.015, 0.02, 0.04))


def test_what_is_stopped_would_hardly_ever_have_been_the_best_of_its_rung() -> None:
    total = false = 0
    for seed in range(6):
        truths = replayed(seed, 0.02)[1]
        total += len(truths)
        for trial, end in truths.items():
            false += end <= (1 + TIE) * best_of_rung(trial)
    assert total > 20
    assert false <= 0.02 * total + 1


def test_what_a_stopped_run_was_expected_to_end_with_is_as_sure_as_it_says() -> None:
    errors = []
    for seed in range(6):
        results, truths = replayed(seed, 0.05)
        errors += [(math.log(r.loss) - math.log(truths[r.trial])) / r.deviation for r in results if r.trial in truths]
    assert len(errors) > 40
    assert abs(np.mean(errors)) < 0.5
    assert 0.6 < np.std(errors) < 1.4


def test_nothing_is_stopped_unless_it_is_asked_for_nor_before_curves_are_known() -> None:
    assert not any(result.trained < 1.0 for result in replayed(0, 0.0)[0])
    question = arena(give_up=0.5)
    unseen: list[Result] = []
    for _ in range(4):
        stage = next_stage(question, unseen, ALLOWANCE, 6)
        assert not stage.limits
        unseen += [Result(trial, curve(trial, 0)[1]) for trial in stage.trials]


def test_a_limit_is_halfway_and_follows_the_loss_to_be_reached() -> None:
    question = arena(give_up=0.02)
    results: list[Result] = []
    while not (stage := next_stage(question, results, ALLOWANCE, 6)).limits:
        results += [Result(trial, *reversed(curve(trial, 0))) for trial in stage.trials]
    for trial, limit in stage.limits.items():
        assert limit.step == halfway(round(trial.d / 32))
        assert limit.expected(limit.loss) > 1.05 * limit.aim
    assert next_stage(question, results, ALLOWANCE, 6) == stage
    eager = next_stage(replace(question, give_up=0.2), results, ALLOWANCE, 6)
    assert all(eager.limits[trial].loss < limit.loss for trial, limit in stage.limits.items())


def test_a_stopped_run_costs_what_it_trained_and_leaves_no_trunk() -> None:
    question = arena()
    short, long = (question.trial("late", "w80000", budget, 0.02) for budget in BUDGETS[:2])
    ledger = Ledger(question)
    assert ledger.enter(short, 0.5) == pytest.approx(0.5 * short.n * short.d)
    assert ledger.enter(long) == long.n * long.d


def test_a_study_with_a_stopped_run_goes_on_after_a_kill_and_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception): ...

    class Impatient(Listener):
        def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
            if finished == 5:
                raise Stop

    def with_a_limit(question: Any, results: Sequence[Result], *rest: Any) -> Stage:
        stage = next_stage(question, results, *rest)
        if len(results) != 4:
            return stage
        first = stage.trials[0]  # of the second rung
        return replace(stage, limits={first: Limit(halfway(round(first.d / 16)), 0.1, 0.5, 0.5, 1.0)})

    monkeypatch.setattr(stages, "next_stage", with_a_limit)
    monkeypatch.setattr(stages, "stopped", lambda trial, loss, *_: Result(trial, 2.5, loss, 0.5, 0.05))
    config = toy_study(tmp_path / "toy", study={"budget": 1.6e10})
    with pytest.raises(Stop):
        run_study(config, Impatient(), executor=Here())
    listener = Listener()
    document = run_study(config, listener, executor=Here())
    rows = Store(config.directory).rows()
    (gone,) = (row for row in rows if row["status"] == "stopped")
    assert gone["stopped_at"] == halfway(gone["steps"])
    assert gone["heldout_loss"] is None
    assert "leads to about" in gone["error"]
    assert gone["expected_loss"] == pytest.approx(math.exp(0.5 + 0.5 * math.log(gone["halfway_loss"])))
    assert all(row["halfway_loss"] for row in rows)
    assert document["spent"]["stopped_runs"] == 1
    assert document["spent"]["stop_flops"] == pytest.approx(0.5 * gone["train_flops"], rel=0.05)
    assert "stopped halfway as hopeless saved" in (config.directory / "report.html").read_text()

    again = Listener()
    assert run_study(config, again, executor=Here())["families"] == document["families"]
    assert again.trained == []
    assert again.stages == listener.stages
    assert Store(config.directory).rows() == rows


def test_families_without_a_belief_or_curves_have_no_limits() -> None:
    assert limits(arena(give_up=0.02), {}, [], []) == {}
