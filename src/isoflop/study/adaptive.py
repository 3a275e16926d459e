"""The adaptive planner: from the finished runs to the next ones, as a pure function.

The first two rungs are for everybody: all sizes, at first with several learning rates, then with the best; the third is
for the sizes that a family's answer lies among. (Two rungs make a slope that nothing has tried: on real runs it once
named the wrong family, with P(best) 0.98.) From there on runs are chosen one by one for what they are worth to the
decision per unit of cost, in batches that fill the workers. A run may be one rung above the highest of its family; on a
trunk it costs only the steps that are new. What is not worth its cost is not continued: that is how hopeless runs,
rates, sizes and families end early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from isoflop.study.arena import Arena, Ledger, Result, answers, candidates, rates_near, trunk
from isoflop.study.belief import Belief, Trial, fit_belief
from isoflop.study.decide import Decision, Outlook, Standing

NEGLIGIBLE = 0.02
"""P(best) below which a family gets no more runs."""
SMALL_REGRET = 0.005
"""Share of the loss that the choice of size and learning rate may be expected to lose when the study stops."""
NO_GAIN = 1e-4
"""A batch that is expected to remove less regret than this is not worth training."""
MAX_COPIES = 3  # of a run, with different seeds
LAW_RUNGS = 3  # that a law needs, and without which no family is given up


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


def next_stage(arena: Arena, results: Sequence[Result], allowance: float, batch: int) -> Stage:
    """What to train next.

    Args:
        results: all finished runs, in the order in which they were planned. allowance: what the ladder may cost in all.
        batch: how many runs go side by side.
    """
    rungs = [sum(result.trial.budget == budget for result in results) for budget in arena.budgets]
    if not rungs[0]:
        return Stage(tuple(opening(arena)))
    ledger = Ledger(arena)
    spent = sum(map(ledger.spent, results))
    beliefs = believe(arena, results)
    decision = Decision(beliefs, {f: answers(arena, f, belief, results) for f, belief in beliefs.items()})
    outlook = decision.outlook()
    second = [] if rungs[1] else second_rung(arena, beliefs, results)
    costs = accumulate(map(ledger.cost, second))  # prices may have risen since the plan: what cannot be paid is cut
    if second := [trial for trial, cost in zip(second, costs, strict=True) if cost <= allowance - spent]:
        return Stage(tuple(second), outlook, spent=spent)
    lacking: list[Trial] = []
    for standing in outlook.standings:
        more = lacking + _for_the_law(arena, standing, beliefs, results)
        if sum(map(ledger.cost, more)) <= allowance - spent:
            lacking = more
    if lacking:
        return Stage(tuple(lacking), outlook, decision.gain(lacking), spent=spent)
    dropped = tuple(family for family in arena.contenders if outlook.p_best(family) < NEGLIGIBLE)
    leader = outlook.standings[0]
    if leader.p_best >= arena.sure and outlook.regret <= SMALL_REGRET:
        sure = f"P(best) of {leader.answer.family} is {leader.p_best:.2f}"
        return Stage((), outlook, 0.0, dropped, sure, spent)
    open_trials = [
        candidates(arena, family, belief, results) for family, belief in beliefs.items() if family not in dropped
    ]
    trials = _batch(open_trials, results, decision, ledger, allowance - spent, batch)
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
        for rate in contender.first.get(model, contender.rates[model])
    ]


def second_rung(arena: Arena, beliefs: Mapping[str, Belief], results: Sequence[Result]) -> list[Trial]:
    """The second rung: every size that starts, at the rate that the first rung makes the best."""
    trials = []
    for family, belief in beliefs.items():
        for model in arena.contenders[family].start:
            if arena.trains(family, model, arena.budgets[1]):
                at = arena.trial(family, model, arena.budgets[1], 1.0)
                trials += [replace(at, rate=rate) for rate in rates_near(arena, belief, at, results)[:1]]
    return trials


def _for_the_law(
    arena: Arena, standing: Standing, beliefs: Mapping[str, Belief], results: Sequence[Result]
) -> list[Trial]:
    """What a family lacks of the rungs that its law needs: on the next one, the size nearest to its answer and its
    neighbours; nothing where it has them."""
    family = standing.answer.family
    levels = sorted({result.trial.budget for result in results if result.trial.family == family})
    above = [budget for budget in arena.budgets if budget > levels[-1]]
    if len(levels) >= LAW_RUNGS or not above:
        return []
    best: dict[str, Trial] = {}
    for trial in candidates(arena, family, beliefs[family], results):
        if trial.budget == above[0]:
            best.setdefault(trial.model, trial)
    return sorted(best.values(), key=lambda trial: abs(math.log(trial.n / standing.answer.n)))[:3]


def believe(arena: Arena, results: Sequence[Result]) -> dict[str, Belief]:
    """What the finished runs say about each family; a family all of whose runs diverged is missing."""
    beliefs = {}
    for family, contender in arena.contenders.items():
        own = [result for result in results if result.trial.family == family]
        size = _mean_log([result.trial.n for result in own if math.isfinite(result.loss)])
        usual = _mean_log([rate for model in contender.start for rate in contender.rates[model]])
        usual += contender.exponent * (size - _mean_log([contender.sizes[model] for model in contender.start]))
        belief = fit_belief(
            [result.trial for result in own],
            [result.loss for result in own],
            (*arena.budgets, arena.target),
            (math.exp(usual), contender.exponent, contender.doubt),
        )
        if belief is not None:
            beliefs[family] = belief
    return beliefs


def _mean_log(values: Sequence[float]) -> float:
    return sum(map(math.log, values)) / max(len(values), 1)


def _batch(
    open_trials: Sequence[Sequence[Trial]],
    results: Sequence[Result],
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
