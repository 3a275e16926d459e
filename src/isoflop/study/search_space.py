"""The search space of the adaptive planner: candidates, possible answers, costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from isoflop.study.belief import Belief, Trial, level_of

Trunk = tuple[str, str, float, str, int, int | None]
RATE_RATIO = 2.0  # between neighbours on a grid of learning rates


@dataclass(frozen=True)
class TrialResult:
    """How a run ended.

    Attributes:
        loss: held-out loss, +inf if it diverged.
        cost: what its training took, measured, in the unit of the study's limit; None where only the price is known.
    """

    trial: Trial
    loss: float
    cost: float | None = None


@dataclass(frozen=True)
class Candidate:
    """What may be tried of a family.

    Attributes:
        sizes: preset → FLOPs an image, of all that may be trained, small to large. start: those that begin.
        answers: preset → FLOPs an image, of all that the answer may name.
        rates: preset → learning rates to begin with, ascending, a factor of `RATE_RATIO` apart.
        bounds: the lowest and highest rate that may be tried.
        price: preset → cost of training on an image. each: preset → what a run costs beside that.
        shared: share of a run's steps that longer runs can start from: 1 - cooldown, 0 for a schedule without a trunk.
        first: preset → the rates it tries on the first rung, where they are not all of `rates`.
        answer_images: preset → the images that an answer trains on, where a limit in time decides that and not FLOPs.
        recipes: levels of regularisation to choose from, or one that is not chosen, ("",).
        exponent: of FLOPs an image in the learning rate, as far as anybody knows beforehand, give or take `doubt`.
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
    doubt: float = 0.2
    first: dict[str, tuple[float, ...]] = field(default_factory=dict)
    answer_images: dict[str, float] = field(default_factory=dict)
    recipes: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class SearchSpace:
    """The question: families, rungs, the target; batch size and the fewest steps that make a run; the P(best) at which
    the study ends; how many different images there are, whether runs may take a part of them, and the shares of them
    that are asked for."""

    families: dict[str, Candidate]
    budgets: tuple[float, ...]
    target: float
    batch_size: int
    min_steps: int = 20
    sure: float = 0.95
    unique_images: float = math.inf
    in_parts: bool = True
    shares: tuple[float, ...] = ()

    @property
    def parts(self) -> tuple[int, ...]:
        """The numbers of images, below all, on which each family is to be trained at one budget."""
        return tuple(round(share * self.unique_images) for share in self.shares if share < 1)

    def trial(self, family: str, model: str, budget: float, rate: float, recipe: str = "", copy: int = 0) -> Trial:
        candidate = self.families[family]
        n = candidate.sizes[model] if model in candidate.sizes else candidate.answers[model]
        steps = max(1, round(budget / n / self.batch_size))
        return Trial(family, model, n, float(steps * self.batch_size), budget, rate, recipe, copy)

    def recipes_near(self, family: str, level: float) -> list[str]:
        """The levels of regularisation of a family, the one nearest to `level` first."""
        return sorted(self.families[family].recipes, key=lambda name: abs(level_of(name) - level))

    def trains(self, family: str, model: str, budget: float) -> bool:
        """Whether `budget` buys enough steps of the preset."""
        return budget / self.families[family].sizes[model] / self.batch_size >= self.min_steps - 0.5


@dataclass
class Ledger:
    """What runs cost, given that longer ones start from the trunks of shorter ones."""

    space: SearchSpace
    longest: dict[Trunk, float] = field(default_factory=dict)

    def cost(self, trial: Trial) -> float:
        """What training `trial` would cost now."""
        candidate = self.space.families[trial.family]
        before = self.longest.get(trunk(trial), 0.0)
        shared = candidate.shared * before if before <= trial.d else 0.0
        return (trial.d - shared) * candidate.price[trial.model] + candidate.each.get(trial.model, 0.0)

    def spent(self, result: TrialResult) -> float:
        """`result` was trained; returns what it cost: as measured where that is known, its evaluation by its price."""
        priced = self.enter(result.trial)
        each = self.space.families[result.trial.family].each.get(result.trial.model, 0.0)
        return priced if result.cost is None else result.cost + each

    def enter(self, trial: Trial) -> float:
        """`trial` is trained; returns its cost."""
        cost = self.cost(trial)
        self.longest[trunk(trial)] = max(trial.d, self.longest.get(trunk(trial), 0.0))
        return cost


def trunk(trial: Trial) -> Trunk:
    """What runs share that differ only in length."""
    return trial.family, trial.model, trial.rate, trial.recipe, trial.copy, trial.unique_images


def answers(space: SearchSpace, family: str, belief: Belief, results: Sequence[TrialResult]) -> list[Trial]:
    """What a family could answer: each preset at the rate believed best for it, and up to a grid step around that, at
    the level of regularisation believed best; at that rate at the other levels; at the target's FLOPs, or on the images
    that its share of a limit in time pays for.

    Presets reach from half the smallest size tried to twice the size that the largest one tried becomes when the best
    size grows as √compute: nothing is known about others.
    """
    own = [result.trial for result in results if result.trial.family == family]
    growth = 2.0 * math.sqrt(space.target / max(trial.budget for trial in own))
    low, high = min(trial.n for trial in own) / 2.0, max(trial.n for trial in own) * growth
    trials = []
    for model in space.families[family].answers:
        at = space.trial(family, model, space.target, 1.0)
        if model in (paid := space.families[family].answer_images):
            at = replace(at, d=paid[model])
        if not low <= at.n <= high or at.d < space.min_steps * space.batch_size:
            continue
        middle = belief.best_rate(at.n, at.d)
        best, *others = space.recipes_near(family, belief.best_level(at.d))
        trials += [replace(at, rate=middle * RATE_RATIO**step, recipe=best) for step in (-1, -0.5, 0, 0.5, 1)]
        trials += [replace(at, rate=middle, recipe=other) for other in others]
    if not trials:  # nothing is left to pay for a run, and still there is an answer: the shortest of what was tried
        smallest = min(own, key=lambda trial: trial.n)
        at = replace(smallest, budget=space.target, d=float(space.min_steps * space.batch_size), copy=0)
        trials = [replace(at, rate=belief.best_rate(at.n, at.d))]
    return trials


def candidates(space: SearchSpace, family: str, belief: Belief, results: Sequence[TrialResult]) -> list[Trial]:
    """Sizes tried and their neighbours, up to one rung above the family's highest, at the rates nearest to the law, and
    at the nearest of these at other levels of regularisation."""
    own = [result for result in results if result.trial.family == family]
    highest = max(result.trial.budget for result in own)
    reach = space.budgets[: space.budgets.index(highest) + 2]
    names = list(space.families[family].sizes)
    tried = sorted(names.index(model) for model in {result.trial.model for result in own})
    names = names[max(tried[0] - 1, 0) : tried[-1] + 2]
    trials = []
    for budget in reach:
        for model in names:
            if not space.trains(family, model, budget):
                continue
            at = space.trial(family, model, budget, 1.0)
            best, *others = space.recipes_near(family, belief.best_level(at.d))
            rates = rates_near(space, belief, at, own)[:3]
            trials += [replace(at, rate=rate, recipe=best) for rate in rates]
            trials += [replace(at, rate=rate, recipe=other) for rate in rates[:1] for other in others]
    return trials


def rates_near(space: SearchSpace, belief: Belief, at: Trial, results: Sequence[TrialResult]) -> list[float]:
    """Rates of the preset's grid, continued at both ends, nearest to the one believed best first.

    From the lowest rate at which the preset diverged upwards there are none.
    """
    candidate = space.families[at.family]
    best = belief.best_rate(at.n, at.d)
    start = candidate.rates[at.model][0]
    steps = round(math.log(best / start) / math.log(RATE_RATIO))
    grid = {float(f"{start * RATE_RATIO ** (steps + k):.6g}") for k in (-2, -1, 0, 1, 2)}
    grid |= set(candidate.rates[at.model])
    same = [result for result in results if (result.trial.family, result.trial.model) == (at.family, at.model)]
    ceiling = min((result.trial.rate for result in same if not math.isfinite(result.loss)), default=math.inf)
    inside = [r for r in grid if candidate.bounds[0] * 0.99 <= r <= candidate.bounds[1] * 1.01 and r < 0.99 * ceiling]
    return sorted(inside, key=lambda rate: abs(math.log(rate / best)))
