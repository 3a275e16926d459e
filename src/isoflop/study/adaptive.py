"""The adaptive planner: a pure function from the finished runs to the next ones.

The first two rungs contain every family: all sizes, first with several learning rates, then with the best. The third
rung has the sizes around the family's answer. (Two rungs do not test the slope: on real runs they once gave the wrong
family, with P(best) 0.98.) After that, runs are chosen by the expected reduction of regret per unit of cost, in batches
that fill the workers. A run may be one rung above the highest of its family; on a trunk it costs only its new steps.
Sizes, rates and families that are not worth their cost get no more runs (early stopping).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np

from isoflop.config import StudyConfig, StudyTable
from isoflop.config.study import SEARCH
from isoflop.errors import StudyError
from isoflop.report.rows import Row
from isoflop.report.savings import total_cost
from isoflop.runs.times import Times
from isoflop.study.belief import Array, Belief, Trial, fit_belief, usual_level
from isoflop.study.planned import (
    ANSWER_SHARE,
    ENOUGH_STEPS,
    EVALUATION_SHARE,
    LADDER_RUNS,
    LADDER_SPAN,
    RUNGS_RATIO,
    TARGET_DISTANCE,
    Catalogue,
    enough_steps,
)
from isoflop.study.rungs import first_rates
from isoflop.study.search_space import Ledger, SearchSpace, TrialResult, answers, candidates, rates_near, trunk
from isoflop.train.device import usable_cores

# What is decided now, how sure that is, and what each further run would be worth.
#
# The decision is a family, a size and a learning rate for the target budget. Its regret is what it is expected to lose
# against the best choice if everything were known. A run is worth as much regret as knowing its result is expected to
# remove: the knowledge gradient for correlated normal beliefs (Frazier, Powell & Dayanik, 2009), per unit of cost.


DRAWS = 1024
REPEATS = (1.0, 4.0, 16.0)
"""One run often cannot turn a decision, though a few like it would: a run is worth the best mean over so many."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class FamilyStanding:
    """What a family would do at the target, and how it stands: expected log loss, its deviation, P(best), regret.

    The regret is the share of the loss that this answer is expected to lose against the best if all were known.
    """

    answer: Trial
    log_loss: float
    deviation: float
    p_best: float
    regret: float


@dataclass(frozen=True)
class Outlook:
    """Families, best first."""

    standings: tuple[FamilyStanding, ...]

    @property
    def regret(self) -> float:
        """The expected regret of the best answer."""
        return self.standings[0].regret

    def p_best(self, family: str) -> float:
        return next((s.p_best for s in self.standings if s.answer.family == family), 0.0)


@dataclass(frozen=True)
class _Answers:
    """The answers that a family could give: trials at the target, expected log losses (j,), gradients (j, p)."""

    trials: Sequence[Trial]
    mean: Array
    gradient: Array


class Decision:
    """The beliefs about all families and the answers each could give; updated as runs are chosen, not yet made."""

    def __init__(self, beliefs: Mapping[str, Belief], family_answers: Mapping[str, Sequence[Trial]]) -> None:
        self.beliefs = beliefs
        self.answers = {
            family: _Answers(trials, *beliefs[family].predict(trials)) for family, trials in family_answers.items()
        }
        self.covariance = {family: beliefs[family].covariance for family in family_answers}
        size = max(belief.mean.size for belief in beliefs.values())
        # The same draws for the same question, whatever was asked before.
        self.draws = np.random.default_rng(0).standard_normal((len(self.answers), DRAWS // 2, size))

    def outlook(self) -> Outlook:
        """How the families stand before any further run."""
        lowest, deviations = [], []
        for k, (family, family_answers) in enumerate(self.answers.items()):
            spread = family_answers.gradient @ _root(self.covariance[family])
            normal = self.draws[k, :, : spread.shape[1]] @ spread.T
            lowest.append((family_answers.mean + np.concatenate([normal, -normal])).min(axis=1))
            deviations.append(np.sqrt((spread**2).sum(axis=1)))
        losses = np.stack(lowest)
        share = np.bincount(losses.argmin(axis=0), minlength=len(losses)) / losses.shape[1]
        perfect = float(losses.min(axis=0).mean())
        standings = []
        for k, family_answers in enumerate(self.answers.values()):
            j = int(family_answers.mean.argmin())
            mean = float(family_answers.mean[j])
            regret = max(mean - perfect, 0.0)
            standings.append(
                FamilyStanding(family_answers.trials[j], mean, float(deviations[k][j]), float(share[k]), regret)
            )
        return Outlook(tuple(sorted(standings, key=lambda standing: standing.log_loss)))

    def worth(self, trials: Sequence[Trial], costs: Sequence[float]) -> Array:
        """Regret that each trial of one family is expected to remove, per unit of its cost (m,)."""
        family = trials[0].family
        family_answers, belief = self.answers[family], self.beliefs[family]
        own = belief.predict(trials)[1]
        gradient = own @ self.covariance[family]
        shift = gradient @ family_answers.gradient.T  # covariance of each trial with each answer
        variance = (gradient * own).sum(axis=1)
        others = min((a.mean.min() for f, a in self.answers.items() if f != family), default=np.inf)
        now = min(float(family_answers.mean.min()), others)
        best = np.zeros(len(trials))
        for repeats in REPEATS:
            scale = shift / np.sqrt(variance + belief.noise**2 / repeats)[:, None]
            lowest = (family_answers.mean[None, :, None] + scale[:, :, None] * NODES).min(axis=1)
            gain = now - np.minimum(lowest, others) @ WEIGHTS
            best = np.maximum(best, gain / repeats)
        return np.asarray(best / np.asarray(costs))

    def chosen(self, trial: Trial) -> None:
        """From now on the result of `trial` counts as known, though not what it is."""
        belief, covariance = self.beliefs[trial.family], self.covariance[trial.family]
        gradient = belief.predict([trial])[1][0]
        pull = covariance @ gradient
        self.covariance[trial.family] = covariance - np.outer(pull, pull) / (gradient @ pull + belief.noise**2)

    def gain(self, trials: Sequence[Trial]) -> float:
        """The regret that the results of all `trials` together are expected to remove."""
        lowest = np.full(DRAWS, np.inf)
        for k, (family, family_answers) in enumerate(self.answers.items()):
            own = [trial for trial in trials if trial.family == family]
            value = np.broadcast_to(family_answers.mean, (DRAWS, family_answers.mean.size))
            if own:
                belief = self.beliefs[family]
                gradient = belief.predict(own)[1]
                joint = gradient @ belief.covariance @ gradient.T + belief.noise**2 * np.eye(len(own))
                shift = family_answers.gradient @ belief.covariance @ gradient.T @ np.linalg.inv(_root(joint)).T
                half = np.resize(self.draws[k], (DRAWS // 2, len(own)))
                normal = half @ shift.T
                value = family_answers.mean + np.concatenate([normal, -normal])
            lowest = np.minimum(lowest, value.min(axis=1))
        now = min(float(family_answers.mean.min()) for family_answers in self.answers.values())
        return max(now - float(lowest.mean()), 0.0)


def _root(covariance: Array) -> Array:
    """A lower-triangular square root; rounding may have cost a covariance its last positive eigenvalues."""
    return np.asarray(np.linalg.cholesky(covariance + 1e-12 * np.trace(covariance) * np.eye(len(covariance))))


NEGLIGIBLE = 0.02
"""P(best) below which a family gets no more runs."""
SMALL_REGRET = 0.005
"""Share of the loss that the choice of size and learning rate may be expected to lose when the study stops."""
NO_GAIN = 1e-4
"""A batch that is expected to remove less regret than this is not worth training."""
MAX_COPIES = 3  # of a run, with different seeds
LAW_RUNGS = 3  # that a law needs
REPEATING = 2.0  # epochs of an answer from which on runs on a part of the images are made
PARTS_SHARE = 0.15  # of the allowance, for those runs at most
FEWEST_IMAGES = 100  # of such a part
HOPELESS = 0.002
"""P(best) below which a family does not even get the rungs that its law needs."""


@dataclass(frozen=True)
class Stage:
    """The next runs, or why there are none.

    Attributes:
        trials: in the order of their worth. outlook: how the families stand; None before the first rung.
        gain: regret that the trials are expected to remove. dropped: families that got their last run.
        stop: why the study ends here, "" while it goes on. spent: what the finished runs have cost.
    """

    trials: tuple[Trial, ...]
    outlook: Outlook | None = None
    gain: float = 0.0
    dropped: tuple[str, ...] = ()
    stop: str = ""
    spent: float = 0.0


def next_stage(space: SearchSpace, results: Sequence[TrialResult], allowance: float, batch: int) -> Stage:
    """What to train next.

    Args:
        results: all finished runs, in the order in which they were planned. allowance: what the ladder may cost in all.
        batch: how many runs go side by side.
    """
    rungs = [sum(result.trial.budget == budget for result in results) for budget in space.budgets]
    if not rungs[0]:
        return Stage(tuple(opening(space)))
    ledger = Ledger(space)
    spent = sum(map(ledger.spent, results))
    decision = decide(space, results)
    beliefs, outlook = decision.beliefs, decision.outlook()
    second = [] if rungs[1] else second_rung(space, beliefs, results)
    costs = accumulate(map(ledger.cost, second))  # prices may have risen since the plan: what cannot be paid is cut
    if second := [trial for trial, cost in zip(second, costs, strict=True) if cost <= allowance - spent]:
        return Stage(tuple(second), outlook, spent=spent)
    lacking: list[Trial] = []
    for standing in outlook.standings:
        if standing.p_best < HOPELESS:
            continue
        for trial in _for_the_law(space, standing, beliefs, results):
            if sum(map(ledger.cost, [*lacking, trial])) <= allowance - spent:
                lacking.append(trial)
    if lacking:
        return Stage(tuple(lacking), outlook, decision.gain(lacking), spent=spent)
    leader = outlook.standings[0]
    if on_shares := _on_shares(space, outlook, results, ledger, allowance - spent):
        return Stage(tuple(on_shares), outlook, decision.gain(on_shares), spent=spent)
    on_parts = [] if space.shares else _on_parts_of_the_images(space, leader, results)
    while on_parts and sum(map(ledger.cost, on_parts)) > min(allowance - spent, PARTS_SHARE * allowance):
        on_parts = on_parts[:-1]
    if on_parts:
        return Stage(tuple(on_parts), outlook, decision.gain(on_parts), spent=spent)
    dropped = tuple(family for family in space.families if outlook.p_best(family) < NEGLIGIBLE)
    if leader.p_best >= space.sure and outlook.regret <= SMALL_REGRET:
        sure = f"P(best) of {leader.answer.family} is {leader.p_best:.2f}"
        return Stage((), outlook, 0.0, dropped, sure, spent)
    open_trials = [
        candidates(space, family, belief, results) for family, belief in beliefs.items() if family not in dropped
    ]
    trials = _batch(open_trials, results, decision, ledger, allowance - spent, batch)
    if not trials:
        return Stage((), outlook, 0.0, dropped, "no run that is left can be paid for", spent)
    gain = decision.gain(trials)
    if gain < NO_GAIN:
        return Stage((), outlook, gain, dropped, "no run that is left would tell much more", spent)
    return Stage(tuple(trials), outlook, gain, dropped, spent=spent)


def decide(space: SearchSpace, results: Sequence[TrialResult]) -> Decision:
    """The decision as the finished runs leave it."""
    beliefs = believe(space, results)
    return Decision(beliefs, {family: answers(space, family, belief, results) for family, belief in beliefs.items()})


def opening(space: SearchSpace) -> list[Trial]:
    """The first rung: every size that starts, at every rate it starts with; where the level of regularisation is
    searched, at the one that is usual, and the size that tries several rates at its neighbours, too."""
    lowest = space.budgets[0]
    trials = []
    for family, candidate in space.families.items():
        for model in candidate.start:
            if not space.trains(family, model, lowest):
                continue
            at = space.trial(family, model, lowest, 1.0)
            usual, *others = space.recipes_near(family, usual_level(at.d / space.unique_images))
            rates = candidate.first.get(model, candidate.rates[model])
            trials += [replace(at, rate=rate, recipe=usual) for rate in rates]
            if len(rates) > 1:
                trials += [replace(at, rate=rates[len(rates) // 2], recipe=other) for other in others[:1]]
    return trials


def second_rung(space: SearchSpace, beliefs: Mapping[str, Belief], results: Sequence[TrialResult]) -> list[Trial]:
    """The second rung: every size that starts, at the rate and level that the first rung makes the best."""
    trials = []
    for family, belief in beliefs.items():
        for model in space.families[family].start:
            if space.trains(family, model, space.budgets[1]):
                at = space.trial(family, model, space.budgets[1], 1.0)
                at = replace(at, recipe=space.recipes_near(family, belief.best_level(at.d))[0])
                trials += [replace(at, rate=rate) for rate in rates_near(space, belief, at, results)[:1]]
    return trials


def _for_the_law(
    space: SearchSpace, standing: FamilyStanding, beliefs: Mapping[str, Belief], results: Sequence[TrialResult]
) -> list[Trial]:
    """What a family lacks of the rungs that its law needs: on the next one, the size nearest to its answer, and the two
    nearest to that unless the family is far behind; nothing where it has them."""
    family = standing.answer.family
    levels = sorted({result.trial.budget for result in results if result.trial.family == family})
    above = [budget for budget in space.budgets if budget > levels[-1]]
    if len(levels) >= LAW_RUNGS or not above:
        return []
    best: dict[str, Trial] = {}
    for trial in candidates(space, family, beliefs[family], results):
        if trial.budget == above[0]:
            best.setdefault(trial.model, trial)
    nearest = sorted(best.values(), key=lambda trial: abs(math.log(trial.n / standing.answer.n)))
    return nearest[: 3 if standing.p_best >= NEGLIGIBLE else 1]


def _again(parts: Sequence[int], best: Mapping[str, Trial]) -> list[Trial]:
    """The best trial of each family again, on each of the numbers of images."""
    return [replace(trial, unique_images=part, copy=0) for trial in best.values() for part in parts]


def _on_shares(
    space: SearchSpace, outlook: Outlook, results: Sequence[TrialResult], ledger: Ledger, left: float
) -> list[Trial]:
    """Where shares of the images are asked for: the best run of each family at the highest budget that those not given
    up have in common, on each share. Families that cannot be paid for are left out, the worst first. [] where they were
    made."""
    if not space.parts or any(result.trial.unique_images for result in results):
        return []
    names = [standing.answer.family for standing in outlook.standings if standing.p_best >= HOPELESS]
    names = names if len(names) > 1 else [standing.answer.family for standing in outlook.standings[:2]]
    done = [result for result in results if math.isfinite(result.loss)]
    rungs = [{r.trial.budget for r in done if r.trial.family == family} for family in names]
    if not (common := set.intersection(*rungs)):
        return []
    at = [result for result in done if result.trial.budget == max(common)]
    best = {
        family: min((r for r in at if r.trial.family == family), key=lambda result: result.loss).trial
        for family in names
    }
    while best and sum(map(ledger.cost, _again(space.parts, best))) > left:
        best.popitem()
    return _again(space.parts, best)


def _on_parts_of_the_images(space: SearchSpace, leader: FamilyStanding, results: Sequence[TrialResult]) -> list[Trial]:
    """Where the answer sees its images several times: the best run of the second rung, at the answer's level of
    regularisation, on so small a part of them that it repeats them as often, a quarter at least, and on twice that.
    [] where they were made, or images do not repeat."""
    answer, whole = leader.answer, space.unique_images
    own = [result for result in results if result.trial.family == answer.family and math.isfinite(result.loss)]
    rungs = sorted({result.trial.budget for result in own})
    if not space.in_parts or answer.d < REPEATING * whole or len(rungs) < 2:
        return []
    if any(r.trial.unique_images for r in results):
        return []
    best = min((r for r in own if r.trial.budget == rungs[1]), key=lambda result: result.loss).trial
    images = max(best.d / answer.d * whole, whole / 4, FEWEST_IMAGES, space.batch_size)
    parts = [round(part) for part in (images, 2 * images) if part <= 0.75 * whole]
    return [replace(best, unique_images=part, recipe=answer.recipe, copy=0) for part in parts]


def believe(space: SearchSpace, results: Sequence[TrialResult]) -> dict[str, Belief]:
    """What the finished runs say about each family; a family all of whose runs diverged is missing."""
    beliefs = {}
    for family, candidate in space.families.items():
        own = [result for result in results if result.trial.family == family]
        size = _mean_log([result.trial.n for result in own if math.isfinite(result.loss)])
        usual = _mean_log([rate for model in candidate.start for rate in candidate.rates[model]])
        usual += candidate.exponent * (size - _mean_log([candidate.sizes[model] for model in candidate.start]))
        belief = fit_belief(
            [result.trial for result in own],
            [result.loss for result in own],
            (*space.budgets, space.target),
            (math.exp(usual), candidate.exponent, candidate.doubt),
            space.unique_images,
        )
        if belief is not None:
            beliefs[family] = belief
    return beliefs


def _mean_log(values: Sequence[float]) -> float:
    return sum(map(math.log, values)) / max(len(values), 1)


def _batch(
    open_trials: Sequence[Sequence[Trial]],
    results: Sequence[TrialResult],
    decision: Decision,
    ledger: Ledger,
    left: float,
    count: int,
) -> list[Trial]:
    """Up to `count` affordable trials, each the one of most worth once those before it are known.

    `open_trials` holds the candidates of each family. `ledger` and `decision` end as if the trials were made.
    """
    made = {result.trial for result in results}
    chosen: list[Trial] = []
    taken = set()
    while len(chosen) < count:
        best: tuple[float, Trial] | None = None
        for trials in open_trials:
            fresh = [trial for trial in (_fresh(trial, made) for trial in trials) if trial is not None]
            # Two lengths of one trunk side by side would train its steps twice.
            fresh = [trial for trial in fresh if trunk(trial) not in taken]
            affordable = [trial for trial in fresh if ledger.cost(trial) <= left]
            if not affordable:
                continue
            worth = decision.worth(affordable, [ledger.cost(trial) for trial in affordable])
            k = int(worth.argmax())
            if best is None or worth[k] > best[0]:
                best = float(worth[k]), affordable[k]
        if best is None or best[0] <= 0:
            break
        left -= ledger.enter(best[1])
        decision.chosen(best[1])
        made.add(best[1])
        taken.add(trunk(best[1]))
        chosen.append(best[1])
    return chosen


def _fresh(trial: Trial, made: set[Trial]) -> Trial | None:
    """The first copy of `trial` that was not made; None when there are enough."""
    for copy in range(MAX_COPIES):
        candidate = replace(trial, copy=copy)
        if candidate not in made:
            return candidate
    return None


# What a study may cost: FLOPs, hours, device-hours, money. The answers' share is set aside before anything is measured.


RUNGS_SPAN = 64.0
"""Between the lowest and the highest rung that the planner chooses, if the smallest presets train that briefly."""


@dataclass(frozen=True)
class Overheads:
    """What a study takes beside its runs, and how its answers are trained.

    Attributes:
        preparation, evaluation: seconds before the first run, measured, and after the last, foreseen.
        threads: of an answer. share: seconds that a step of it takes on these, of what it takes on one; None of a study
            that was planned without asking. latency_ms: of models that a limit asks for, on one image.
    """

    preparation: float = 0.0
    evaluation: float = 0.0
    threads: int = 1
    share: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.preparation + self.evaluation


NOTHING_BESIDE = Overheads()


@dataclass(frozen=True)
class Ladder:
    """What a limit makes of a ladder whose rungs are not named.

    Attributes:
        rungs: those chosen. fewer: sizes that families begin with than they ask for.
        left_out: families whose smallest sizes the limit cannot pay for, with the reason.
    """

    rungs: tuple[float, ...] = ()
    fewer: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)


UNCHOSEN = Ladder()


@dataclass(frozen=True)
class Funds:
    """What there is, what the answers take, and what training costs, all in `unit` (FLOPs, hours, device-hours, money).

    `per_flop` is the price of a training FLOP by (family, preset measured), `evaluated` how many images judge a run.
    `open_ended` answers train as long as what is left of the limit lasts, whatever FLOPs that is. `answering` is the
    price of an answer's training in that of a run of the ladder, for it trains on several threads; `beside` what is for
    preparation and evaluation, `per_clock_second` the price of a second of these.
    """

    unit: str
    total: float
    reserved: float
    flops: Mapping[tuple[str, str], float]
    per_flop: Mapping[tuple[str, str], float]
    evaluated: int
    per_second: float = 0.0
    """of a worker; 0 where the limit is in FLOPs"""
    open_ended: bool = False
    answering: float = 1.0
    beside: float = 0.0
    per_clock_second: float = 0.0

    @property
    def allowance(self) -> float:
        """What the ladder may cost."""
        return self.total - self.reserved - self.beside

    def spent(self, rows: Sequence[Row], times: Times | None = None) -> float:
        """What a study has cost whose runs are `rows` and which took `times`: the hours of the clock; or measured
        seconds (or FLOPs) of training, evaluation by its price, and the seconds beside them."""
        flops, seconds = total_cost(rows)
        if self.unit == "FLOPs":
            return flops
        if times and self.unit == "hours":
            return times.total / 3600
        judged = [row for row in rows if row["status"] == "done"]
        evaluation = sum(self.price_of_evaluation(row["family"], row["flops_per_image"]) for row in judged)
        beside = times.total - times.seconds["ladder"] - times.seconds["answer"] if times else 0.0
        return seconds * self.per_second + evaluation + beside * self.per_clock_second

    def price_of_answer(self, family: str, flops_per_image: float, images: int) -> float:
        """The price of training an answer, evaluations on the way included."""
        share = 1.0 if self.unit == "FLOPs" else 1.0 + EVALUATION_SHARE
        return images * self.price(family, flops_per_image) * self.answering * share

    def price(self, family: str, flops_per_image: float) -> float:
        """The price of training on an image, at the efficiency of the nearest preset of the family measured."""
        return flops_per_image * self._efficiency(family, flops_per_image)

    def price_of_evaluation(self, family: str, flops_per_image: float) -> float:
        """The price of a run beside its steps: its evaluation. Training FLOPs do not count it."""
        return 0.0 if self.unit == "FLOPs" else self.evaluated * self.price(family, flops_per_image) / 3

    def answer_images(self, family: str, flops_per_image: float, share: float) -> float:
        """How many images an answer trains on for `share`, its evaluation and what threads lose together included."""
        paid = ANSWER_MARGIN * share - self.price_of_evaluation(family, flops_per_image)
        return max(paid, 0.0) / self.price_of_answer(family, flops_per_image, 1)

    def at_price(self, model: tuple[str, str], flops_per_image: float, seconds: float) -> Funds:
        """The same, where `model` takes so many seconds of a worker to train on an image."""
        price = seconds / flops_per_image * self.per_second
        per_flop = {**self.per_flop, model: price}
        return replace(self, flops={**self.flops, model: flops_per_image}, per_flop=per_flop)

    def _efficiency(self, family: str, flops_per_image: float) -> float:
        return self.per_flop[nearest_measured(self.flops, family, flops_per_image)]


def nearest_measured(flops: Mapping[tuple[str, str], float], family: str, flops_per_image: float) -> tuple[str, str]:
    """Of the models that were timed, with their FLOPs an image, the one of the family nearest in size."""
    own = [key for key in flops if key[0] == family]
    return min(own, key=lambda key: abs(math.log(flops[key] / flops_per_image)))


ANSWER_MARGIN = 0.9
"""The rest is for what an answer takes beside its steps and evaluations: its start, its checkpoints, and steps that are
slower than the fastest of a few, by which it is priced (two answers took 11 % longer than that, beside other work)."""


def limit_of(study: StudyTable) -> tuple[str, float, float | None]:
    """The limit of a study that has one: its unit, how much of it there is, and what a second of a worker costs in it;
    None where FLOPs are counted."""
    if study.budget is not None:
        return "FLOPs", study.budget, None
    if study.hours is not None:
        return "hours", study.hours, 1 / 3600 / (study.workers or usable_cores())
    if study.device_hours is not None:
        return "device-hours", study.device_hours, 1 / 3600
    assert study.money is not None
    assert study.price_per_hour is not None
    return "money", study.money, study.price_per_hour / 3600


def answer_price(study: StudyTable, overheads: Overheads) -> float:
    """What a second of an answer on one thread costs, in seconds of a worker, where it trains on several."""
    if overheads.share is None:
        return 1.0
    # Finals go side by side, and hours pass for all workers.
    at_once = overheads.threads if study.hours is None else (study.workers or usable_cores()) / study.finals
    return overheads.share * at_once


def clock_price(study: StudyTable) -> float:
    """What a second costs in which one process works, in the unit of the study's limit."""
    _, _, per_second = limit_of(study)
    return 1 / 3600 if study.hours is not None else per_second or 0.0


def funds_of(
    config: StudyConfig,
    catalogue: Catalogue,
    seconds: Mapping[tuple[str, str], float],
    overheads: Overheads = NOTHING_BESIDE,
    *,
    begun: bool = False,
    open_ended: bool = False,
) -> Funds:
    """The funds of a study with a limit, given seconds an image; StudyError if the answers exceed it, unless it has
    `begun`: the limit then leaves nothing more to the ladder. `open_ended` answers get their share, whatever it buys.

    Answers are priced like the largest size measured of the family that is dearest then.
    """
    study = config.study
    flops = {key: catalogue.flops_per_image(*key) for key in seconds}
    unit, total, scale = limit_of(study)
    per_flop = {key: 1.0 if scale is None else seconds[key] / flops[key] * scale for key in seconds}
    largest = {family: max((key for key in flops if key[0] == family), key=flops.__getitem__) for family, _ in flops}
    dearest = max(largest.values(), key=per_flop.__getitem__)
    answering = 1.0 if scale is None else answer_price(study, overheads)
    clock = clock_price(study)
    beside = overheads.seconds * clock
    funds = Funds(
        unit, total, 0.0, flops, per_flop, catalogue.heldout, scale or 0.0,
        answering=answering, beside=beside, per_clock_second=clock,
    )  # fmt: skip
    if open_ended and scale is not None:
        return replace(funds, reserved=ANSWER_SHARE * max(total - beside, 0.0), open_ended=True)
    price = funds.price_of_answer(dearest[0], flops[dearest], 1) / flops[dearest]
    funds = replace(funds, reserved=study.finals * study.target_flops * price)
    if funds.allowance <= 0 and not begun:
        also = f", preparation and evaluation {funds.beside:.2g}" if funds.beside else ""
        raise StudyError(
            f"study.{_key(unit)} = {total:g} leaves nothing to measure: training the answer alone "
            f"({study.finals} × {study.target_flops:g} FLOPs) takes {funds.reserved:.2g} {unit} on this machine{also}; "
            f"raise it or lower target_budget"
        )
    return funds


def _key(unit: str) -> str:
    return {"FLOPs": "budget", "device-hours": "device_hours"}.get(unit, unit)


def lowest_rung(catalogue: Catalogue, family: str) -> float:
    """FLOPs of `enough_steps` of the smallest size that a family may train."""
    steps = enough_steps(catalogue.config.families[family])
    named = isinstance(catalogue.config.families[family].sizes, tuple)
    names = catalogue.starting_sizes(family) if named else catalogue.within_limits(family, catalogue.ladder(family))
    smallest = min(names, key=lambda name: catalogue.flops_per_image(family, name))
    of_labels = steps * catalogue.batch_size * catalogue.flops_per_image(family, smallest)
    return max(of_labels, catalogue.least_pretrained(family, smallest))


def _opening_runs(config: StudyConfig, catalogue: Catalogue) -> int:
    """Of the first rung: see `opening`."""
    count = 0
    for family, options in config.families.items():
        rates = first_rates(config, catalogue, family, catalogue.starting_sizes(family)).values()
        count += sum(map(len, rates)) + (options.recipe == SEARCH) * sum(len(each) > 1 for each in rates)
    return count


def choose_budgets(
    config: StudyConfig, catalogue: Catalogue, flops: float, enough: Callable[[float], str], *, open_ended: bool = False
) -> tuple[float, ...]:
    """The rungs of a ladder that may cost `flops` in all, below the target; StudyError when that is too little.

    The highest is what every starting size could be trained with, though no more than the target divided by
    `TARGET_DISTANCE`; the lowest a factor of `RUNGS_SPAN` below it, or what the smallest presets need. `enough` says
    which limit would do, given how many times `flops` are needed; `open_ended` targets grow with the limit, too.
    """
    starting, floors = catalogue.starting, [lowest_rung(catalogue, family) for family in config.families]
    floor, opened = max(floors), _opening_runs(config, catalogue)
    top = min(config.study.target_flops / TARGET_DISTANCE, (flops - opened * floor) / (LADDER_RUNS * starting))
    bottom = max(floor, top / RUNGS_SPAN)
    if top < LADDER_SPAN * bottom:
        target = LADDER_SPAN * TARGET_DISTANCE * bottom
        needed = bottom * (opened + LADDER_SPAN * LADDER_RUNS * starting)
        if config.study.target_flops < target and not open_ended:
            raise StudyError(
                f"study.target_budget = {config.study.target_flops:g} is too near to what the smallest presets need "
                f"({bottom:.2g} FLOPs for {ENOUGH_STEPS} steps): there is no room for a ladder below it; "
                f"take at least {target:.2g}, or smaller sizes"
            )
        factor = max(needed / flops, target / config.study.target_flops if open_ended else 0.0)
        raise StudyError(
            f"the study's limit leaves {flops:.2g} FLOPs for the ladder, but {starting} sizes from {bottom:.2g} FLOPs "
            f"a run need about {factor * flops:.2g}: {enough(factor)} would do, or fewer families or sizes"
        )
    count = max(3, 1 + math.ceil(math.log(top / bottom) / math.log(RUNGS_RATIO) - 1e-9))
    ratio = (top / bottom) ** (1 / (count - 1))
    return tuple(float(f"{bottom * ratio**k:.2g}") for k in range(count))
