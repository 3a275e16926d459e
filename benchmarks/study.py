"""Does the adaptive study pay? It is replayed against a whole grid of runs, beside fixed rungs and Optuna's searches.

    python benchmarks/study.py [TABLE] [--planted WORLD] [--planners 10]

TABLE is `benchmarks/study_grid.csv`, what `benchmarks/study_grid.py` gave: three families, four sizes, several budgets,
four learning rates, three seeds. Planner number k draws a seed of its own for each trunk, so that ten planners see ten
tables. What a planner recommends for four times the largest budget is judged by the laws of the whole grid, with what a
learning rate costs that is not the best; in a planted world by its law.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from study_grid import MIN_STEPS, STUDY
from study_planted import WORLDS, World, planted_rows

from isoflop import laws
from isoflop.config import StudyConfig, parse
from isoflop.study.adaptive import Funds, next_stage
from isoflop.study.answer import answer_from
from isoflop.study.belief import Trial
from isoflop.study.plan import Plan, RungForecast, search_space_of
from isoflop.study.planned import Catalogue
from isoflop.study.run import SMALLEST_BATCH, Ended, stages
from isoflop.study.rungs import first_rung
from isoflop.study.search_space import Ledger, SearchSpace, TrialResult

SHARE = 0.25  # of the grid's FLOPs: what a planner may spend
REACH = 4.0  # the question is asked this factor above the largest budget
CLOSE = 0.01  # of the loss
SEEDS = 3

Key = tuple[str, str, float, float, int]  # family, preset, budget, learning rate, seed


class Grid:
    """The table: what every run gave, what all of them cost, and what they say about the target together."""

    def __init__(self, rows: Iterable[dict[str, str]]) -> None:
        self.losses: dict[Key, float] = {}
        for row in rows:
            key = (row["family"], row["model"], float(row["budget"]), float(row["learning_rate"]), int(row["seed"]))
            self.losses[key] = float(row["heldout_loss"]) if row["heldout_loss"] else math.inf
        self.budgets = tuple(sorted({key[2] for key in self.losses}))
        study: dict[str, Any] = {"name": "replay", "budgets": self.budgets, "target_budget": REACH * self.budgets[-1]}
        self.config = parse({**STUDY, "study": study}, StudyConfig)
        self.catalogue = Catalogue(self.config)
        self.sizes = {name: tuple(options["sizes"]) for name, options in STUDY["families"].items()}
        self.space = self._arena()

    def _arena(self) -> SearchSpace:
        start = [(family, name) for family, names in self.sizes.items() for name in names]
        flops = {key: self.catalogue.flops_per_image(*key) for key in start}
        funds = Funds("FLOPs", math.inf, 0.0, flops, dict.fromkeys(flops, 1.0), 0)
        space = search_space_of(self.config, self.catalogue, self.sizes, funds)
        families = {}
        for family, candidate in space.families.items():
            largest = max(candidate.sizes.values()) * REACH
            families[family] = replace(
                candidate,
                bounds=(min(map(min, candidate.rates.values())), max(map(max, candidate.rates.values()))),
                answers={name: n for name, n in candidate.answers.items() if n <= largest},
            )
        return replace(space, families=families, min_steps=MIN_STEPS)

    def key(self, trial: Trial, planner: int) -> Key | None:
        """Which run of the grid `trial` is for planner number `planner`: one of its seeds, the same along a trunk."""
        text = f"{planner} {trial.family} {trial.model} {trial.rate:g}"
        first = int(hashlib.sha256(text.encode()).hexdigest(), 16)
        for seed in range(SEEDS):
            key = (trial.family, trial.model, trial.budget, trial.rate, (first + trial.copy + seed) % SEEDS)
            if key in self.losses:
                return key
        return None

    def trials(self) -> list[Trial]:
        """Every run of the grid; its seed is the number of the copy."""
        return [self.space.trial(f, m, budget, rate, seed) for f, m, budget, rate, seed in sorted(self.losses)]

    def means(self, family: str) -> list[tuple[Trial, float]]:
        """The runs of a family, seeds averaged (log loss); a combination that diverged once is left out."""
        groups: dict[Trial, list[float]] = {}
        for trial in self.trials():
            if trial.family == family:
                key = (family, trial.model, trial.budget, trial.rate, trial.copy)
                groups.setdefault(replace(trial, copy=0), []).append(self.losses[key])
        return [(t, float(np.exp(np.mean(np.log(v))))) for t, v in groups.items() if np.isfinite(v).all()]


class Truth(Protocol):
    """What an answer at the target is worth."""

    def loss(self, trial: Trial) -> float: ...

    def best_rate(self, trial: Trial) -> float: ...


@dataclass(frozen=True)
class Planted:
    """The planted law itself."""

    world: World

    def loss(self, trial: Trial) -> float:
        return self.world.measured(trial.family, trial.n, trial.d, trial.rate)

    def best_rate(self, trial: Trial) -> float:
        return self.world.best_rate(trial.family, trial.n, trial.d)


@dataclass(frozen=True)
class Fitted:
    """What the laws of the whole grid say."""

    laws: dict[str, laws.SizeDataLaw]
    rates: dict[str, laws.LearningRateLaw]
    curvature: dict[str, float]

    def loss(self, trial: Trial) -> float:
        bowl = 0.5 * self.curvature[trial.family] * math.log(trial.rate / self.best_rate(trial)) ** 2
        return float(self.laws[trial.family].predict(trial.n, trial.d)) * math.exp(bowl)

    def best_rate(self, trial: Trial) -> float:
        return float(self.rates[trial.family].predict(trial.n, trial.d))


def best_answers(truth: Truth, space: SearchSpace) -> dict[str, tuple[float, Trial]]:
    """The best answer of each family and its loss."""
    found = {}
    for family, candidate in space.families.items():
        trials = [space.trial(family, model, space.target, 1.0) for model in candidate.answers]
        trials = [replace(t, rate=truth.best_rate(t)) for t in trials]
        found[family] = min((truth.loss(trial), trial) for trial in trials)
    return found


def fitted_to(grid: Grid) -> Fitted:
    """Laws of each family by all runs, at the best rate of each size and budget; and the curvature of the bowls."""
    fitted, rates, curvature = {}, {}, {}
    for family in grid.space.families:
        means = grid.means(family)
        bowls: dict[tuple[str, float], list[tuple[Trial, float]]] = {}
        for trial, loss in means:
            bowls.setdefault((trial.model, trial.budget), []).append((trial, loss))
        best = [min(bowl, key=lambda pair: pair[1]) for bowl in bowls.values()]
        fitted[family] = laws.fit_size_data([t.n for t, _ in best], [t.d for t, _ in best], [z for _, z in best])
        rates[family] = laws.fit_learning_rate(
            [t.n for t, _ in means], [t.rate for t, _ in means], [z for _, z in means], [t.d for t, _ in means]
        )
        bends = []
        for bowl in bowls.values():
            if len(bowl) >= 3:
                bends.append(2 * np.polyfit(np.log([t.rate for t, _ in bowl]), np.log([z for _, z in bowl]), 2)[0])
        curvature[family] = max(float(np.median(bends)), 0.005)
    return Fitted(fitted, rates, curvature)


@dataclass(frozen=True)
class Outcome:
    """What a method recommends, and what that took: FLOPs with shared trunks, and as separate runs."""

    answer: Trial
    shared: float
    separate: float
    runs: int


class Spender:
    """Runs against the table, with a ledger."""

    def __init__(self, grid: Grid, planner: int) -> None:
        self.grid, self.planner = grid, planner
        self.ledger, self.results = Ledger(grid.space), list[TrialResult]()
        self.shared = self.separate = 0.0

    def run(self, trial: Trial) -> float:
        """What `trial` gives."""
        key = self.grid.key(trial, self.planner)
        loss = self.grid.losses[key] if key else math.inf
        self.results.append(TrialResult(trial, loss))
        self.shared += self.ledger.enter(trial)
        self.separate += trial.n * trial.d
        return loss

    def outcome(self, answer: Trial) -> Outcome:
        return Outcome(answer, self.shared, self.separate, len(self.results))

    def answer(self) -> Trial:
        """What a study answers after fixed rungs."""
        rows = [
            {
                "family": r.trial.family, "model": r.trial.model, "role": "ladder",
                "status": "done" if math.isfinite(r.loss) else "diverged",
                "flops_per_image": r.trial.n, "images": r.trial.d, "train_flops": r.trial.n * r.trial.d,
                "budget": r.trial.budget,
                "learning_rate": r.trial.rate, "heldout_loss": r.loss,
            }
            for r in self.results
        ]  # fmt: skip
        outlook = next_stage(self.grid.space, tuple(self.results), 0.0, SMALLEST_BATCH).outlook
        best = answer_from(self.grid.config, self.grid.catalogue, rows, outlook, adaptive=False).best
        return self.grid.space.trial(
            best.family, best.run.model, self.grid.space.target, best.run.config.optim.learning_rate
        )


def adaptive(grid: Grid, planner: int, allowance: float, say: Callable[[str], None]) -> Outcome:
    """The study with a limit: `next_stage` until it stops; what it then believes best is what the study answers."""
    spender = Spender(grid, planner)
    while True:
        stage = next_stage(grid.space, tuple(spender.results), allowance, SMALLEST_BATCH)
        if stage.stop:
            assert stage.outlook
            standing = {s.answer.family: round(s.p_best, 2) for s in stage.outlook.standings}
            say(f"planner {planner}: {len(spender.results)} runs, {stage.stop}; P(best) {standing}")
            return spender.outcome(stage.outlook.standings[0].answer)
        for trial in stage.trials:
            spender.run(trial)


def fixed(grid: Grid, planner: int) -> Outcome:
    """The study without a budget: every size at every rung."""
    spender, known = Spender(grid, planner), dict[str, Ended]()
    nothing = [RungForecast(budget, 0, 0.0, 0.0) for budget in grid.budgets]
    plan = Plan(grid.catalogue, grid.sizes, first_rung(grid.config, grid.catalogue, grid.sizes), nothing, {})
    for batch in stages(plan, lambda: known, 1):
        for run in batch.runs:
            trial = grid.space.trial(run.family, run.model, run.budget, run.config.optim.learning_rate)
            inside = any(key[:4] == (trial.family, trial.model, trial.budget, trial.rate) for key in grid.losses)
            known[run.run_id] = Ended(spender.run(trial) if inside else math.inf)
    return spender.outcome(spender.answer())


def random_search(grid: Grid, planner: int, allowance: float) -> Outcome:
    """Optuna's random sampler over family, size and rate at the largest budget; the best run is what it recommends."""
    return _search(grid, planner, allowance, optuna.pruners.NopPruner(), grid.budgets[-1:])


def halving(grid: Grid, planner: int, allowance: float) -> Outcome:
    """Optuna's successive halving: a third of the runs goes on from each budget to the next."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return _search(grid, planner, allowance, pruner, grid.budgets)


def _search(
    grid: Grid, planner: int, allowance: float, pruner: optuna.pruners.BasePruner, budgets: tuple[float, ...]
) -> Outcome:
    spender, copies = Spender(grid, planner), dict[tuple[str, str, float], int]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=planner), pruner=pruner)
    best: tuple[float, Trial] = (math.inf, grid.trials()[0])
    while True:
        asked = study.ask()
        family = asked.suggest_categorical("family", list(grid.space.families))
        candidate = grid.space.families[family]
        model = asked.suggest_categorical(f"{family} size", list(candidate.sizes))
        rate = asked.suggest_categorical(f"{family} rate", list(candidate.rates[model]))
        copy = copies[family, model, rate] = copies.get((family, model, rate), -1) + 1
        for level, budget in enumerate(budgets):
            if not grid.space.trains(family, model, budget):
                continue
            trial = grid.space.trial(family, model, budget, rate, copy)
            if spender.shared + spender.ledger.cost(trial) > allowance:
                return spender.outcome(replace(best[1], d=grid.space.target / best[1].n, budget=grid.space.target))
            loss = spender.run(trial)
            if budget == budgets[-1] and loss < best[0]:
                best = loss, trial
            if not math.isfinite(loss):
                break
            asked.report(loss, 3**level)
            if asked.should_prune():
                break
        study.tell(asked, loss if math.isfinite(loss) else None, state=_state(math.isfinite(loss)))


def _state(finite: bool) -> optuna.trial.TrialState:
    return optuna.trial.TrialState.COMPLETE if finite else optuna.trial.TrialState.FAIL


def report(name: str, outcomes: list[Outcome], truth: Truth, grid: Grid) -> str:
    """A row of the table, over all planners."""
    best = best_answers(truth, grid.space)
    family = min(best, key=lambda f: best[f][0])
    lowest = best[family][0]
    all_shared, all_separate = grid_costs(grid)
    regrets = [truth.loss(o.answer) / lowest - 1 for o in outcomes]
    right = sum(o.answer.family == family for o in outcomes)
    close = sum(r <= CLOSE for r in regrets)
    both = sum(r <= CLOSE and o.answer.family == family for r, o in zip(regrets, outcomes, strict=True))
    shared = np.array([o.shared for o in outcomes]) / all_shared
    return (
        f"| {name} | {np.mean([o.runs for o in outcomes]):.0f} | {shared.mean():.1%} | {shared.max():.1%} "
        f"| {np.mean([o.separate for o in outcomes]) / all_separate:.1%} | {right} | {close} | {both} "
        f"| {np.median(regrets):.2%} | {max(regrets):.2%} |"
    )


def grid_costs(grid: Grid) -> tuple[float, float]:
    """FLOPs of the whole grid, with shared trunks and as separate runs."""
    ledger = Ledger(grid.space)
    trials = sorted(grid.trials(), key=lambda trial: trial.budget)
    return sum(ledger.enter(trial) for trial in trials), sum(trial.n * trial.d for trial in trials)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", nargs="?", type=Path, default=Path(__file__).parent / "study_grid.csv")
    parser.add_argument("--planners", type=int, default=10)
    parser.add_argument("--planted", choices=WORLDS, help="planted laws in the place of a table")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.planted:
        grid = Grid(planted_rows(options.planted))
        truth: Truth = Planted(WORLDS[options.planted])
    else:
        with options.table.open(newline="", encoding="utf-8") as file:
            grid = Grid(csv.DictReader(file))
        truth = fitted_to(grid)
    shared, separate = grid_costs(grid)
    print(f"The grid: {len(grid.losses)} runs, {shared:.3g} FLOPs with shared trunks, {separate:.3g} as separate runs.")
    print(f"At {grid.space.target:.3g} FLOPs it says:")
    for family, (loss, trial) in sorted(best_answers(truth, grid.space).items(), key=lambda item: item[1]):
        print(f"  {family}: loss {loss:.4f} by {trial.model} at {trial.rate:.3g}")
    planners = range(options.planners)
    ours = [adaptive(grid, k, SHARE * shared, print) for k in planners]
    rows = [
        report("adaptive study", ours, truth, grid),
        report("fixed rungs", [fixed(grid, k) for k in planners], truth, grid),
        report("random search", [random_search(grid, k, ours[k].shared) for k in planners], truth, grid),
        report("random search, a quarter", [random_search(grid, k, SHARE * shared) for k in planners], truth, grid),
        report("successive halving", [halving(grid, k, ours[k].shared) for k in planners], truth, grid),
        report("successive halving, a quarter", [halving(grid, k, SHARE * shared) for k in planners], truth, grid),
    ]
    head = "| | runs | FLOPs, mean | at most | as separate runs | right family | within 1 % | both |"
    print(f"\n{head} regret, median | worst |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
