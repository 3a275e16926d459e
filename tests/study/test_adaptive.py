"""The adaptive planner, replayed against planted laws: it finds what was planted, and spends where it tells most."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from isoflop.laws.size_data_fit import effective_images
from isoflop.study.adaptive import Decision, Stage, next_stage
from isoflop.study.belief import REPEATS, Trial, fit_belief
from isoflop.study.search_space import Candidate, Ledger, SearchSpace, TrialResult, answers

BUDGETS = (1e9, 2.5e9, 6e9, 1.5e10, 4e10)
TARGET = 1.6e11
ALLOWANCE = 5e11
RATES = (0.01, 0.02, 0.04)
SIZES = {f"w{n:g}": n for n in (8e4, 1.6e5, 3.2e5, 6.4e5)}
# E, A, B at 2e5 FLOPs an image and 2e4 images, α, β, best rate: "late" is behind on the ladder's first half only
PLANTED = {"early": (1.0, 0.3, 0.55, 0.3, 0.3, 0.02), "late": (0.9, 0.3, 0.75, 0.3, 0.5, 0.015)}


def space(**changes: object) -> SearchSpace:
    candidate = Candidate(SIZES, tuple(SIZES), SIZES, dict.fromkeys(SIZES, RATES), SIZES)
    return replace(SearchSpace(dict.fromkeys(PLANTED, candidate), BUDGETS, TARGET, 32), **changes)  # type: ignore[arg-type]


def planted(trial: Trial, noise: float = 0.0) -> float:
    e, a, b, alpha, beta, rate = PLANTED[trial.family]
    loss = e + a * (trial.n / 2e5) ** -alpha + b * (trial.d / 2e4) ** -beta
    rng = np.random.default_rng([int(trial.n), int(trial.d), int(trial.rate * 1e6), trial.copy])
    return loss * math.exp(0.03 * math.log(trial.rate / rate) ** 2 + noise * rng.standard_normal())


def replay(
    question: SearchSpace, loss: Callable[[Trial], float], allowance: float = ALLOWANCE
) -> tuple[list[TrialResult], list[Stage]]:
    results: list[TrialResult] = []
    told: list[Stage] = []
    while not told or not told[-1].stop:
        told.append(next_stage(question, results, allowance, 6))
        results += [TrialResult(trial, loss(trial)) for trial in told[-1].trials]
    return results, told


@pytest.fixture(scope="module")
def replayed() -> tuple[list[TrialResult], list[Stage]]:
    return replay(space(), lambda trial: planted(trial, 0.01))


def test_it_finds_the_family_that_is_ahead_at_the_target_only(replayed: tuple[list[TrialResult], list[Stage]]) -> None:
    results, told = replayed
    first = {r.trial.family: r.loss for r in results if r.trial.budget == BUDGETS[0] and r.trial.rate == 0.02}
    assert first["early"] < first["late"]
    outlook = told[-1].outlook
    assert outlook is not None
    answer = outlook.standings[0].answer
    best = min(
        planted(space().trial(family, model, TARGET, rate))
        for family in PLANTED
        for model in SIZES
        for rate in (0.01, 0.015, 0.02)
    )
    assert answer.family == "late"
    assert planted(answer) < 1.01 * best


def test_the_same_results_give_the_same_runs(replayed: tuple[list[TrialResult], list[Stage]]) -> None:
    results, told = replayed
    count = 0
    for stage in told:
        assert next_stage(space(), results[:count], ALLOWANCE, 6) == stage
        count += len(stage.trials)


def test_no_run_is_made_twice_and_none_skips_a_rung(replayed: tuple[list[TrialResult], list[Stage]]) -> None:
    results, _ = replayed
    trials = [result.trial for result in results]
    assert len(set(trials)) == len(trials)
    for k, trial in enumerate(trials):
        rung = BUDGETS.index(trial.budget)
        assert rung == 0 or any(t.family == trial.family and t.budget == BUDGETS[rung - 1] for t in trials[:k])


def test_the_allowance_is_kept() -> None:
    question, allowance = space(sure=0.999), 1.2e11
    results, told = replay(question, lambda trial: planted(trial, 0.05), allowance)
    ledger = Ledger(question)
    assert sum(ledger.enter(result.trial) for result in results) <= allowance
    assert told[-1].spent <= allowance


def test_a_hopeless_family_gets_no_more_runs() -> None:
    results, told = replay(space(), lambda trial: planted(trial, 0.01) * (3.0 if trial.family == "early" else 1.0))
    assert told[-1].dropped == ("early",)
    # That far behind, its law is not worth a third rung.
    assert {r.trial.budget for r in results if r.trial.family == "early"} == set(BUDGETS[:2])
    assert "P(best) of late" in told[-1].stop
    assert len({r.trial.budget for r in results if r.trial.family == "late"}) >= 3  # what a law needs


def test_rates_beyond_the_edge_of_the_grid_are_tried_where_the_best_lies_there() -> None:
    def loss(trial: Trial) -> float:
        return planted(replace(trial, rate=trial.rate / 16))  # the best rates are near 0.3

    results, _ = replay(space(), loss)
    assert max(result.trial.rate for result in results) >= 0.16


def test_a_rate_that_diverged_is_not_raised() -> None:
    def loss(trial: Trial) -> float:
        return math.inf if trial.rate >= 0.04 else planted(replace(trial, rate=trial.rate / 16), 0.01)

    results, told = replay(space(), loss)
    assert max(result.trial.rate for result in results) == 0.04
    tried_once = [result.trial for result in results if result.trial.rate == 0.04]
    assert {trial.budget for trial in tried_once} == {BUDGETS[0]}
    assert told[-1].outlook is not None


def test_sizes_follow_the_optimum_beyond_those_that_began() -> None:
    question = space()
    small = {family: replace(c, start=tuple(SIZES)[:2]) for family, c in question.families.items()}
    results, _ = replay(replace(question, families=small), lambda trial: planted(trial, 0.005))
    assert {result.trial.model for result in results} > set(tuple(SIZES)[:2])


def test_longer_runs_cost_what_their_trunk_lacks() -> None:
    question = space()
    ledger = Ledger(question)
    short = question.trial("late", "w80000", 1e9, 0.02)
    long = question.trial("late", "w80000", 2.5e9, 0.02)
    assert ledger.enter(short) == short.n * short.d
    assert ledger.cost(long) == pytest.approx(long.n * (long.d - 0.8 * short.d))
    assert ledger.cost(replace(long, copy=1)) == long.n * long.d


def test_the_belief_recovers_planted_learning_rates_and_covers_the_truth() -> None:
    question = space()
    levels = (*BUDGETS, TARGET)
    inside = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        trials = [question.trial("late", m, c, r) for m in SIZES for c in BUDGETS[:4] for r in RATES]
        losses = [planted(trial) * math.exp(0.02 * rng.standard_normal()) for trial in trials]
        belief = fit_belief(trials, losses, levels, (0.03, -0.2, 0.2))
        assert belief is not None
        assert belief.noise == pytest.approx(0.02, rel=0.35)
        assert belief.best_rate(2e5, 5e4) == pytest.approx(0.015, rel=0.3)
        ahead = question.trial("late", "w320000", TARGET, 0.015)
        value, gradient = belief.predict([ahead])
        deviation = math.sqrt(gradient[0] @ belief.covariance @ gradient[0])
        inside += abs(value[0] - math.log(planted(ahead))) < 1.645 * deviation
    assert inside >= 17


def test_a_run_is_worth_more_the_more_it_tells_about_the_decision() -> None:
    question = space()
    trials = {f: [question.trial(f, m, c, r) for m in SIZES for c in BUDGETS[:3] for r in RATES] for f in PLANTED}
    levels = (*BUDGETS, TARGET)
    beliefs = {}
    for family, own in trials.items():
        belief = fit_belief(own, [planted(t, 0.02) for t in own], levels, (0.02, -0.2, 0.2))
        assert belief is not None
        beliefs[family] = belief
    answers = {f: [question.trial(f, m, TARGET, 0.015) for m in SIZES] for f in PLANTED}
    decision = Decision(beliefs, answers)
    near, far = (question.trial("late", "w320000", c, 0.02) for c in (BUDGETS[3], BUDGETS[0]))
    worth = decision.worth([near, far], [1.0, 1.0])
    assert worth[0] > 3 * worth[1] >= 0
    before = decision.worth([near], [1.0])[0]
    decision.chosen(near)
    assert decision.worth([near], [1.0])[0] < before
    gain = Decision(beliefs, answers).gain([near])
    assert 0 < gain < decision.outlook().regret + 1e-3


def test_repeated_images_are_worth_less_and_less() -> None:
    assert effective_images(5e4, 5e4, REPEATS) == 5e4
    assert effective_images(1e9, math.inf, REPEATS) == 1e9
    # arXiv 2305.16264, equation 5: four epochs are nearly worth four times the data, and forty worth 15.2 times.
    assert effective_images(2e5, 5e4, REPEATS) / 5e4 == pytest.approx(3.73, abs=0.01)
    assert effective_images(2e6, 5e4, REPEATS) / 5e4 == pytest.approx(15.2, abs=0.1)


def test_the_belief_goes_on_as_the_forecaster_does() -> None:
    levels = (*BUDGETS[:3], TARGET)
    trials = [Trial("f", f"w{n:g}", n, b / n, b, 0.02) for b in BUDGETS[:3] for n in SIZES.values()]
    best = {b: 3.0 * (b / 1e9) ** -0.3 for b in BUDGETS[:3]}  # a slope far from what the priors expect
    losses = [best[t.budget] * math.exp(0.02 * math.log(t.n / 1.6e5) ** 2) for t in trials]
    belief = fit_belief(trials, losses, levels, (0.02, -0.2, 0.2))
    assert belief is not None
    ahead = [Trial("f", "", n, TARGET / n, TARGET, belief.best_rate(n, TARGET / n)) for n in np.geomspace(4e4, 1e7, 60)]
    assert belief.predict(ahead)[0].min() == pytest.approx(math.log(3.0 * 160**-0.3), abs=0.15)


def test_a_small_model_on_few_images_is_not_the_answer_for_its_lead_on_a_short_ladder() -> None:
    # Two rungs of a CIFAR-10 study: its planner answered with the smallest ResNet on 4.3 million images, 96 epochs.
    # At 5e12 FLOPs models of 4.9e6, 1.9e7 and 4.2e7 FLOPs an image have losses of 0.753, 0.666 and 0.784.
    runs = [
        (4.86e6, 3.4e11, 0.15, 1.2512), (4.86e6, 3.4e11, 0.3, 1.2273), (4.86e6, 3.4e11, 0.6, 1.2652),
        (1.0e7, 3.4e11, 0.15, 1.5099), (1.0e7, 3.4e11, 0.3, 1.4747), (1.0e7, 3.4e11, 0.6, 1.5194),
        (4.86e6, 8.2e11, 0.3, 1.0186), (1.0e7, 8.2e11, 0.3, 1.194), (1.0e7, 8.2e11, 0.15, 1.248),
        (1.94e7, 3.4e11, 0.3, 1.6307), (1.94e7, 3.4e11, 0.15, 1.659),
    ]  # fmt: skip
    trials = [Trial("resnet", f"{n:g}", n, b / n, b, rate) for n, b, rate, _ in runs]
    levels = (3.4e11, 8.2e11, 2.1e12, 2.1e13)
    belief = fit_belief(trials, [run[-1] for run in runs], levels, (0.34, -0.1, 0.2), 45_000)
    assert belief is not None
    sizes = np.geomspace(2e6, 2e8, 60)
    ahead = [Trial("resnet", "", n, 2.1e13 / n, 2.1e13, belief.best_rate(n, 2.1e13 / n)) for n in sizes]
    assert 8e6 < sizes[belief.predict(ahead)[0].argmin()] < 4e7


def test_answers_are_compared_at_equal_time_where_time_is_the_limit(
    replayed: tuple[list[TrialResult], list[Stage]],
) -> None:
    results, _ = replayed
    question = space()
    belief = fit_belief([r.trial for r in results], [r.loss for r in results], (*BUDGETS, TARGET), (0.02, -0.2, 0.2))
    assert belief is not None
    paid = {name: 3.2e5 if n < 2e5 else 6.4e5 for name, n in SIZES.items()}  # small sizes are slower than their FLOPs
    timed = {name: replace(candidate, answer_images=paid) for name, candidate in question.families.items()}
    for trial in answers(replace(question, families=timed), "late", belief, results):
        assert trial.d == paid[trial.model]
        assert trial.budget == TARGET


@pytest.mark.parametrize(("images", "best"), [(1e3, "strong"), (1.2e4, "medium"), (4e6, "light")])
def test_the_level_of_regularisation_of_the_answer_is_that_of_its_epochs(images: float, best: str) -> None:
    """Planted: each tenfold of the epochs wants one level more, the middle one at 30 epochs."""
    levels = ("light", "medium", "strong")
    question = space(unique_images=images, sure=0.999)
    question = replace(question, families={f: replace(c, recipes=levels) for f, c in question.families.items()})

    def loss(trial: Trial) -> float:
        wanted = min(max(math.log10(trial.d / images / 30) + 1, -0.8), 2.7)
        return planted(trial, 0.01) * math.exp(0.08 * (levels.index(trial.recipe) - wanted) ** 2)

    results, told = replay(question, loss)
    assert told[-1].outlook is not None
    answer = told[-1].outlook.standings[0].answer
    assert answer.recipe == best
    first = [result.trial for result in results if result.trial.budget == BUDGETS[0]]
    assert len({trial.recipe for trial in first}) > 1  # it was searched
    assert len({result.trial.recipe for result in results if result.trial.budget > BUDGETS[1]}) <= 3


def test_shares_of_the_images_are_trained_at_one_budget_by_every_family_that_is_not_given_up() -> None:
    question = space(unique_images=2e4, sure=0.999, shares=(0.25, 0.5, 1.0))
    results, _ = replay(question, planted)
    parts = [result.trial for result in results if result.trial.unique_images]
    assert sorted({trial.unique_images for trial in parts}) == [5000, 10000]
    assert len({trial.budget for trial in parts}) == 1
    by_family = {trial.family: {t.unique_images for t in parts if t.family == trial.family} for trial in parts}
    assert by_family == {family: {5000, 10000} for family in question.families}
    made = [replace(result.trial, copy=0) for result in results]
    assert all(replace(trial, unique_images=None) in made for trial in parts)


@pytest.mark.parametrize("limit", [3.0, 40.0])
def test_what_repeats_are_worth_is_measured_on_parts_of_the_images(limit: float) -> None:
    """Planted: repeats of 20,000 images are worth `limit` times these at most (arXiv 2305.16264)."""
    question = space(unique_images=2e4, sure=0.999)

    def loss(trial: Trial, noise: float = 0.005) -> float:
        different = trial.unique_images or 2e4
        return planted(replace(trial, d=float(effective_images(trial.d, different, limit))), noise)

    results, told = replay(question, loss)
    parts = [result.trial for result in results if result.trial.unique_images]
    assert parts
    assert told[-1].outlook is not None
    standing = told[-1].outlook.standings[0]
    epochs = standing.answer.d / 2e4
    assert min(abs(math.log(trial.d / (trial.unique_images or 1) / epochs)) for trial in parts) < 1.5
    own = [result for result in results if result.trial.family == standing.answer.family]
    levels = (*question.budgets, question.target)
    usual = (0.02, -0.2, 0.2)
    with_parts = fit_belief([r.trial for r in own], [r.loss for r in own], levels, usual, 2e4)
    assert with_parts is not None
    assert (with_parts.repeats < REPEATS) == (limit < REPEATS)
    assert abs(standing.log_loss - math.log(loss(standing.answer, 0.0))) < 0.06
