"""The adaptive planner: from the finished runs to the next ones, as a pure function.

The first two rungs are for everybody: all sizes, at first with several learning rates, then with the best. From there
on runs are chosen one by one for what they are worth to the decision per unit of cost, in batches that fill the
workers. A run may be one rung above the highest of its family; on a trunk it costs only the steps that are new. What is
not worth its cost is not continued: that is how hopeless runs, rates, sizes and families end early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from isoflop.study.belief import Belief, Trial, fit_belief
from isoflop.study.decide import Decision, Outlook

NEGLIGIBLE = 0.02
"""P(best) below which a family gets no more runs."""
SMALL_REGRET = 0.005
"""Share of the loss that the choice of size and learning rate may be expected to lose when the study stops."""
NO_GAIN = 1e-4
"""A batch that is expected to remove less regret than this is not worth training."""
RATE_RATIO = 2.0
MAX_COPIES = 3

Result = tuple[Trial, float]  # a finished run and its held-out loss, +inf if it diverged


@dataclass(frozen=True)
class Contender:
    """What may be tried of a family.

    Attributes:
        sizes: preset → FLOPs an image, of all that may be trained, small to large. start: those that begin.
        answers: preset → FLOPs an image, of all that the answer may name.
        rates: preset → learning rates to begin with, ascending, a factor of `RATE_RATIO` apart.
        bounds: the lowest and highest rate that may be tried.
        price: preset → cost of training on an image. each: preset → what a run costs beside that.
        shared: share of a run's steps that longer runs can start from: 1 - cooldown, 0 for a schedule without a trunk.
        exponent: of FLOPs an image in the learning rate, as far as anybody knows beforehand.
    """

    sizes: dict[str, float]
    start: tuple[str, ...]
    answers: dict[str, float]
    rates: dict[str, tuple[float, ...]]
    price: dict[str, float]
    each: dict[str, float] = field(default_factory=dict)
    shared: float = 0.8
    bounds: tuple[float, float] = (0.0, math.inf)
    exponent: float = -0.2


@dataclass(frozen=True)
class Arena:
    """The question: families, rungs, the target; batch size and the fewest steps that make a run."""

    contenders: dict[str, Contender]
    budgets: tuple[float, ...]
    target: float
    batch_size: int
    min_steps: int = 20
    sure: float = 0.95

    def trial(self, family: str, model: str, budget: float, rate: float, copy: int = 0) -> Trial:
        contender = self.contenders[family]
        n = contender.sizes[model] if model in contender.sizes else contender.answers[model]
        steps = max(1, round(budget / n / self.batch_size))
        return Trial(family, model, n, float(steps * self.batch_size), budget, rate, copy)

    def trains(self, family: str, model: str, budget: float) -> bool:
        """Whether `budget` buys enough steps of the preset."""
        return budget / self.contenders[family].sizes[model] / self.batch_size >= self.min_steps - 0.5


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


@dataclass
class Ledger:
    """What runs cost, given that longer ones start from the trunks of shorter ones."""

    arena: Arena
    longest: dict[tuple[str, str, float, int], float] = field(default_factory=dict)

    def cost(self, trial: Trial) -> float:
        """What training `trial` would cost now."""
        contender = self.arena.contenders[trial.family]
        before = self.longest.get(_trunk(trial), 0.0)
        shared = contender.shared * before if before <= trial.d else 0.0
        return (trial.d - shared) * contender.price[trial.model] + contender.each.get(trial.model, 0.0)

    def enter(self, trial: Trial) -> float:
        """`trial` is trained; returns its cost."""
        cost = self.cost(trial)
        self.longest[_trunk(trial)] = max(trial.d, self.longest.get(_trunk(trial), 0.0))
        return cost


def _trunk(trial: Trial) -> tuple[str, str, float, int]:
    return trial.family, trial.model, trial.rate, trial.copy


def next_stage(arena: Arena, results: Sequence[Result], allowance: float, batch: int) -> Stage:
    """What to train next.

    Args:
        results: all finished runs, in the order in which they were planned. allowance: what the ladder may cost in all.
        batch: how many runs go side by side.
    """
    rungs = [sum(trial.budget == budget for trial, _ in results) for budget in arena.budgets]
    if not rungs[0]:
        return Stage(tuple(opening(arena)))
    ledger = Ledger(arena)
    spent = sum(ledger.enter(trial) for trial, _ in results)
    beliefs = believe(arena, results)
    decision = _decision(arena, beliefs, results)
    outlook = decision.outlook()
    if not rungs[1] and (second := second_rung(arena, beliefs, results)):
        return Stage(tuple(second), outlook, spent=spent)
    dropped = tuple(family for family in arena.contenders if outlook.p_best(family) < NEGLIGIBLE)
    leader = outlook.standings[0]
    if leader.p_best >= arena.sure and outlook.regret <= SMALL_REGRET:
        sure = f"P(best) of {leader.answer.family} is {leader.p_best:.2f}"
        return Stage((), outlook, 0.0, dropped, sure, spent)
    trials = _batch(arena, results, beliefs, decision, ledger, allowance - spent, batch, dropped)
    if not trials:
        return Stage((), outlook, 0.0, dropped, "no run that is left can be paid for", spent)
    gain = decision.gain(trials)
    if gain < NO_GAIN:
        return Stage((), outlook, gain, dropped, "no run that is left would tell much more", spent)
    return Stage(tuple(trials), outlook, gain, dropped, spent=spent)


def opening(arena: Arena) -> list[Trial]:
    """The first rung: every size that starts, at every rate it starts with."""
    lowest = arena.budgets[0]
    return [
        arena.trial(family, model, lowest, rate)
        for family, contender in arena.contenders.items()
        for model in contender.start
        if arena.trains(family, model, lowest)
        for rate in contender.rates[model]
    ]


def second_rung(arena: Arena, beliefs: Mapping[str, Belief], results: Sequence[Result]) -> list[Trial]:
    """The second rung: every size that starts, at the rate that the first rung makes the best."""
    trials = []
    for family, belief in beliefs.items():
        for model in arena.contenders[family].start:
            if arena.trains(family, model, arena.budgets[1]):
                at = arena.trial(family, model, arena.budgets[1], 1.0)
                trials += [replace(at, rate=rate) for rate in _rates_near(arena, belief, at, results)[:1]]
    return trials


def believe(arena: Arena, results: Sequence[Result]) -> dict[str, Belief]:
    """What the finished runs say about each family; a family all of whose runs diverged is missing."""
    beliefs = {}
    for family, contender in arena.contenders.items():
        own = [(trial, loss) for trial, loss in results if trial.family == family]
        size = _mean_log([trial.n for trial, loss in own if math.isfinite(loss)])
        usual = _mean_log([rate for model in contender.start for rate in contender.rates[model]])
        usual += contender.exponent * (size - _mean_log([contender.sizes[model] for model in contender.start]))
        belief = fit_belief(
            [trial for trial, _ in own],
            [loss for _, loss in own],
            (*arena.budgets, arena.target),
            (math.exp(usual), contender.exponent),
        )
        if belief is not None:
            beliefs[family] = belief
    return beliefs


def _mean_log(values: Sequence[float]) -> float:
    return sum(map(math.log, values)) / max(len(values), 1)


def answers(arena: Arena, family: str, belief: Belief, results: Sequence[Result]) -> list[Trial]:
    """What a family could answer: each preset at the rate believed best for it, and up to a grid step around that.

    Presets reach from half the smallest size tried to twice the size that the largest one tried becomes when the best
    size grows as √compute: nothing is known about others.
    """
    own = [trial for trial, _ in results if trial.family == family]
    growth = 2.0 * math.sqrt(arena.target / max(trial.budget for trial in own))
    low, high = min(trial.n for trial in own) / 2.0, max(trial.n for trial in own) * growth
    trials = []
    for model in arena.contenders[family].answers:
        at = arena.trial(family, model, arena.target, 1.0)
        if not low <= at.n <= high or at.d < arena.min_steps * arena.batch_size:
            continue
        middle = belief.best_rate(at.n, at.d)
        trials += [
            arena.trial(family, model, arena.target, middle * RATE_RATIO**step) for step in (-1, -0.5, 0, 0.5, 1)
        ]
    return trials


def _decision(arena: Arena, beliefs: Mapping[str, Belief], results: Sequence[Result]) -> Decision:
    return Decision(beliefs, {family: answers(arena, family, belief, results) for family, belief in beliefs.items()})


def _batch(
    arena: Arena,
    results: Sequence[Result],
    beliefs: Mapping[str, Belief],
    decision: Decision,
    ledger: Ledger,
    left: float,
    count: int,
    dropped: Sequence[str],
) -> list[Trial]:
    """Up to `count` affordable trials, each the one of most worth once those before it are known."""
    made = {trial for trial, _ in results}
    open_trials = {
        family: _candidates(arena, family, belief, results)
        for family, belief in beliefs.items()
        if family not in dropped
    }
    chosen: list[Trial] = []
    taken = set()
    while len(chosen) < count:
        best: tuple[float, Trial] | None = None
        for trials in open_trials.values():
            fresh = [trial for trial in (_fresh(trial, made) for trial in trials) if trial is not None]
            # Two lengths of one trunk side by side would train its steps twice.
            fresh = [trial for trial in fresh if _trunk(trial) not in taken]
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
        taken.add(_trunk(best[1]))
        chosen.append(best[1])
    return chosen


def _fresh(trial: Trial, made: set[Trial]) -> Trial | None:
    """The first copy of `trial` that was not made; None when there are enough."""
    for copy in range(MAX_COPIES):
        candidate = replace(trial, copy=copy)
        if candidate not in made:
            return candidate
    return None


def _candidates(arena: Arena, family: str, belief: Belief, results: Sequence[Result]) -> list[Trial]:
    """Sizes tried and their neighbours, up to one rung above the family's highest, at the rates nearest to the law."""
    own = [(trial, loss) for trial, loss in results if trial.family == family]
    highest = max(trial.budget for trial, _ in own)
    reach = arena.budgets[: arena.budgets.index(highest) + 2]
    names = list(arena.contenders[family].sizes)
    tried = sorted(names.index(model) for model in {trial.model for trial, _ in own})
    names = names[max(tried[0] - 1, 0) : tried[-1] + 2]
    trials = []
    for budget in reach:
        for model in names:
            if not arena.trains(family, model, budget):
                continue
            at = arena.trial(family, model, budget, 1.0)
            trials += [replace(at, rate=rate) for rate in _rates_near(arena, belief, at, own)[:3]]
    return trials


def _rates_near(arena: Arena, belief: Belief, at: Trial, results: Sequence[Result]) -> list[float]:
    """Rates of the preset's grid, continued at both ends, nearest to the one believed best first.

    From the lowest rate at which the preset diverged upwards there are none.
    """
    contender = arena.contenders[at.family]
    best = belief.best_rate(at.n, at.d)
    start = contender.rates[at.model][0]
    steps = round(math.log(best / start) / math.log(RATE_RATIO))
    grid = {float(f"{start * RATE_RATIO ** (steps + k):.6g}") for k in (-2, -1, 0, 1, 2)}
    grid |= set(contender.rates[at.model])
    same = [(trial, loss) for trial, loss in results if (trial.family, trial.model) == (at.family, at.model)]
    ceiling = min((trial.rate for trial, loss in same if not math.isfinite(loss)), default=math.inf)
    inside = [r for r in grid if contender.bounds[0] * 0.99 <= r <= contender.bounds[1] * 1.01 and r < 0.99 * ceiling]
    return sorted(inside, key=lambda rate: abs(math.log(rate / best)))
