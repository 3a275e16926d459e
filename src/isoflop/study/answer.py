"""The answer of a study from its table of runs: best size, images and learning rate per family, and the best family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from isoflop import laws
from isoflop.config import StudyConfig
from isoflop.config.study import judged_by
from isoflop.errors import LawError, StudyError
from isoflop.laws.columns import tells_nothing
from isoflop.laws.compare import naive_ranking
from isoflop.report.interim import (
    at_the_best_recipe,
    best_table,
    fit_families,
    images_entry,
    ladder_of_family,
    on_all_images,
    p_best,
    without_law,
)
from isoflop.report.savings import savings, total_cost, utilisation
from isoflop.runs.results import Row
from isoflop.runs.times import Times
from isoflop.study.adaptive import NEGLIGIBLE, FamilyStanding, Outlook, Stage
from isoflop.study.plan import Plan
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.store import finite_loss


@dataclass(frozen=True)
class FamilyAnswer:
    """What a family would do with the target budget: which preset, how trained, and what comes of it."""

    family: str
    run: PlannedRun
    predicted_loss: float
    interval: tuple[float, float]
    p_best: float
    regret: float
    law: laws.SizeDataLaw | None
    frontier: laws.FrontierLaw | None
    learning_rate_law: laws.LearningRateLaw | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The families that could be fitted, best first; those that could not, with the reason; and among how many families
    P(best) says which is the best."""

    target_flops: float
    level: float
    families: tuple[FamilyAnswer, ...]
    left_out: dict[str, str]
    compared: int
    naive_best: str
    naive_budget: float

    @property
    def best(self) -> FamilyAnswer:
        return self.families[0]


def answer_from(
    config: StudyConfig,
    catalogue: Catalogue,
    rows: list[Row],
    outlook: Outlook | None = None,
    *,
    open_ended: bool = False,
    adaptive: bool = True,
) -> Answer:
    """The answer that the ladder's finished runs give; StudyError when no family has enough of them.

    A family that has too few runs for a law is still answered if the planner believes in it.

    Size and learning rate are those of `outlook`, the planner's belief in every run, and the laws say what loss to
    expect, within which interval. An adaptive study leaves a lopsided table, to which laws of the best run of each size
    and budget fit badly; there the belief ranks the families, too. After fixed rungs (not `adaptive`) the laws do,
    unless a family has too few runs for one.
    """
    target, level = config.study.target_flops, config.laws.level
    if outlook is not None and open_ended:  # the answer takes what time is left
        target = outlook.standings[0].answer.n * outlook.standings[0].answer.d
    options = {"seed": config.study.seed, "bootstrap": config.laws.bootstrap}
    rows = [{**row, "heldout_loss": row.get("target", row["heldout_loss"])} for row in rows]
    fits = fit_families(rows, config.families, **options)
    tables, fitted, left_out = fits.tables, fits.laws, fits.left_out
    frontiers: dict[str, laws.FrontierLaw] = {}
    for family in list(tables):
        points = laws.frontier_points(*tables[family])
        try:
            frontiers[family] = laws.fit_frontier(points.compute, points.loss, **options)
        except LawError as error:
            left_out[family] = without_law(ladder_of_family(rows, family), str(error))
            del tables[family], fitted[family]
    beliefs = {} if outlook is None else {standing.answer.family: standing for standing in outlook.standings}
    lawless = {}
    for family in set(left_out) & set(beliefs):
        if adaptive and beliefs[family].p_best < NEGLIGIBLE:
            tried = sum(row["family"] == family for row in rows)
            left_out[family] = f"given up early by the planner, after {tried} runs"
        elif any(row["family"] == family and math.isfinite(finite_loss(row)) for row in rows):
            lawless[family] = left_out.pop(family)
    if not tables and not lawless:
        told = "; ".join(f"{f}: {why}" for f, why in left_out.items())
        advice = ". The limit left too few runs: raise it, or take fewer families" if config.study.limited else ""
        raise StudyError(f"no family can be answered: {told}{advice}")
    standings: tuple[laws.Standing, ...] = ()
    if tables:
        standings = laws.compare(tables, target, laws=fitted, level=level, seed=config.study.seed).standings
    by_law = {
        s.family: _family_answer(catalogue, s, (fitted[s.family], frontiers[s.family]), rows, beliefs.get(s.family))
        for s in standings
    }
    for name, found in by_law.items():
        if name in beliefs and tells_nothing(*found.interval):
            lawless[name] = "its runs do not determine the interval of a law"
    ranking = beliefs if adaptive or lawless else {}
    by_law = {name: _ranked(found, ranking[name]) if name in ranking else found for name, found in by_law.items()}
    by_belief = {name: _believed_answer(catalogue, beliefs[name], why) for name, why in lawless.items()}
    answers = {name: _beside_guessing(found, catalogue, rows) for name, found in (by_law | by_belief).items()}
    families = tuple(answers[family] for family in ranking or by_law if family in answers)
    naive, budget = naive_ranking(tables | {name: best_table(ladder_of_family(rows, name)) for name in lawless})
    return Answer(target, level, families, left_out, len(ranking or tables), min(naive, key=naive.__getitem__), budget)


NEAR_CHANCE = 0.8
"""Of the loss of guessing: above it, losses have hardly begun to fall. Of 24 predictions at four times such a ladder,
23 were too high, by up to 9 % (docs/results/papers.md)."""


def _beside_guessing(found: FamilyAnswer, catalogue: Catalogue, rows: Sequence[Row]) -> FamilyAnswer:
    """The answer as one knows it who knows the loss of guessing: at the best temperature no loss is above it, and a
    warning tells where even the best run of the family is near it."""
    config, classes = catalogue.config, catalogue.source.num_classes or 1
    by_softmax = judged_by(config.objective_of(found.family)) == ("labels", False)
    if config.target.metric != "heldout_loss" or not by_softmax or classes < 2:
        return found
    losses = [finite_loss(row) for row in ladder_of_family(rows, found.family)]
    best, chance = min(losses, default=math.inf), math.log(classes)
    if config.evaluation.calibrate:
        low, high = (min(end, chance) for end in found.interval)
        found = replace(found, predicted_loss=min(found.predicted_loss, chance), interval=(low, high))
    if not NEAR_CHANCE * chance < best < math.inf:
        return found
    doubt = (
        f"its best run has a loss of {best:.2f}, near the {chance:.2f} of guessing among {classes} classes: losses "
        "fall faster once models have begun to learn, so the prediction may be too high"
    )
    return replace(found, warnings=(doubt, *found.warnings))


def _believed_answer(catalogue: Catalogue, belief: FamilyStanding, problem: str) -> FamilyAnswer:
    """The answer of a family that has no law: all of it is the planner's belief."""
    chosen, level = belief.answer, catalogue.config.laws.level
    rate = float(f"{chosen.rate:.2g}")
    target = chosen.n * chosen.d
    run = catalogue.run(chosen.family, chosen.model, target, rate, role="final", recipe=chosen.recipe)
    half = NormalDist().inv_cdf(0.5 + level / 2) * belief.deviation
    return FamilyAnswer(
        family=chosen.family,
        run=run,
        predicted_loss=math.exp(belief.log_loss),
        interval=(math.exp(belief.log_loss - half), math.exp(belief.log_loss + half)),
        p_best=belief.p_best,
        regret=belief.regret * math.exp(belief.log_loss),
        law=None,
        frontier=None,
        learning_rate_law=None,
        warnings=(f"no law was fitted, the answer is what the planner believes: {problem}",),
    )


def _family_answer(
    catalogue: Catalogue,
    standing: laws.Standing,
    fits: tuple[laws.SizeDataLaw, laws.FrontierLaw],
    rows: list[Row],
    belief: FamilyStanding | None,
) -> FamilyAnswer:
    config, (law, frontier) = catalogue.config, fits
    family, target, level = standing.family, config.study.target_flops, config.laws.level
    chosen = belief.answer if belief else None
    model = chosen.model if chosen else _nearest_preset(catalogue, family, law.size(target))
    runs = at_the_best_recipe(on_all_images(ladder_of_family(rows, family)))
    rates = laws.fit_learning_rate(
        [row["flops_per_image"] for row in runs],
        [row["learning_rate"] for row in runs],
        [finite_loss(row) for row in runs],
        [row["images"] for row in runs],
    )
    flops = catalogue.flops_per_image(family, model)
    target = chosen.n * chosen.d if chosen else target
    best_rate = chosen.rate if chosen else float(rates.predict(flops, target / flops))
    rate = float(f"{best_rate:.2g}")
    run = catalogue.run(family, model, target, rate, role="final", recipe=chosen.recipe if chosen else "")
    low, high = law.interval(flops, run.images, level, best=True)
    return FamilyAnswer(
        family=family,
        run=run,
        predicted_loss=float(law.predict(flops, run.images, best=True)),
        interval=(float(low), float(high)),
        p_best=standing.p_best,
        regret=standing.regret,
        law=law,
        frontier=frontier,
        learning_rate_law=rates,
        warnings=(*law.warnings, *rates.warnings, *((far,) if (far := law.beyond_epochs(run.images)) else ())),
    )


def _ranked(found: FamilyAnswer, belief: FamilyStanding) -> FamilyAnswer:
    """The answer, as likely the best as the planner believes."""
    return replace(found, p_best=belief.p_best, regret=belief.regret * math.exp(belief.log_loss))


def _nearest_preset(catalogue: Catalogue, family: str, flops_per_image: float) -> str:
    """The preset of the family's ladder, or of the named sizes, whose FLOPs an image are nearest to the optimum."""
    return min(
        catalogue.presets(family),
        key=lambda name: abs(math.log(catalogue.flops_per_image(family, name) / flops_per_image)),
    )


def answer_document(answer: Answer) -> dict[str, Any]:
    """The answer as JSON values, for `answer.json` and the report."""
    return {
        "target_flops": answer.target_flops,
        "best": answer.best.family,
        "naive_best": answer.naive_best,
        "naive_budget": answer.naive_budget,
        "left_out": answer.left_out,
        "families": {
            family.family: {
                **_family_document(family, answer.level),
                "p_best": p_best(family.p_best, answer.compared, {"left_out": answer.left_out}),
            }
            for family in answer.families
        },
    }


def _family_document(family: FamilyAnswer, level: float) -> dict[str, Any]:
    return {
        "model": family.run.model,
        "run_id": family.run.run_id,
        "flops_per_image": family.run.flops_per_image,
        "parameters": family.run.parameters,
        "images": family.run.images,
        "steps": family.run.config.steps,
        "learning_rate": family.run.config.optim.learning_rate,
        **({"recipe": family.run.recipe} if family.run.recipe else {}),
        "predicted_loss": family.predicted_loss,
        "interval": list(family.interval),
        "level": level,
        "regret": family.regret,
        "exponents": family.law and family.law.exponents(),
        "r_squared": family.frontier and family.frontier.r_squared,
        "law": family.law and family.law.to_dict(),
        "frontier": family.frontier and family.frontier.to_dict(),
        "learning_rate_law": family.learning_rate_law and family.learning_rate_law.to_dict(),
        "warnings": list(family.warnings),
        **(images_entry(family.law, family.run.train_flops, family.run.images, level) if family.law else {}),
    }


def labels_document(rows: Sequence[Row], best: str, level: float) -> dict[str, Any]:
    """What runs on shares of the images say, as JSON values: for each family the law of labels, the runs behind it and
    what twice the images would bring; and where the family `best` and the others overtake each other. {} without such
    runs."""
    done = [r for r in rows if r["role"] == "ladder" and math.isfinite(finite_loss(r)) and r["unique_images"]]
    whole = max((row["unique_images"] for row in done), default=0)
    same = ("family", "model", "budget", "learning_rate", "recipe", "seed")
    fitted: dict[str, laws.LabelsLaw] = {}
    families: dict[str, Any] = {}
    for row in done:
        if row["unique_images"] == whole or row["family"] in fitted:
            continue
        own = [other for other in done if all(other[name] == row[name] for name in same)]
        own.sort(key=lambda other: other["unique_images"])
        images, loss = [other["unique_images"] for other in own], [finite_loss(other) for other in own]
        try:
            law = laws.fit_labels(images, loss)
        except LawError:
            continue
        ratio, interval = law.twice(level)
        fitted[row["family"]] = law
        families[row["family"]] = {
            "model": row["model"],
            "budget": row["budget"],
            "images": images,
            "loss": loss,
            "accuracy": [other["heldout_accuracy"] for other in own],
            "law": law.to_dict(),
            "twice": {"loss_ratio": ratio, "interval": list(interval)},
        }
    others = [name for name in fitted if name != best] if best in fitted else []
    found = [laws.labels_crossover(best, name, fitted[best], fitted[name], level=level) for name in others]
    return {"families": families, "crossovers": [c.to_dict() for c in found if c]} if families else {}


def planner_document(plan: Plan, last: Stage | None, rows: list[Row], times: Times | None = None) -> dict[str, Any]:
    """What the planner was given, how it ended, and what has been spent so far, as JSON values; `last` is its last
    stage, None on fixed rungs. `plan` has the prices that the finished runs have corrected."""
    document: dict[str, Any] = {"budgets": list(plan.catalogue.budgets), "adaptive": last is not None}
    if plan.funds and last:
        document |= {
            "unit": plan.funds.unit,
            "limit": plan.funds.total,
            "reserved": plan.funds.reserved,
            "beside": plan.funds.beside,
            "spent": plan.funds.spent(rows, times),
            "ladder_spent": plan.funds.spent([row for row in rows if row["role"] == "ladder"]),
            "stop": last.stop,
            "dropped": {name: last.outlook.p_best(name) for name in last.dropped if last.outlook},
        }
    return document


def hours_document(plan: Plan, workers: int, times: Times) -> dict[str, Any]:
    """Hours by the clock, planned and spent: of the ladder, the answer, and everything else (preparation, evaluation,
    fits, report)."""
    total, found = times.total, times.seconds
    spent = {"ladder": found["ladder"], "answer": found["answer"]}
    spent["everything else"] = total - sum(spent.values())
    planned = plan.clock_seconds(workers)
    return {name: {"planned": planned[name] / 3600, "spent": spent[name] / 3600} for name in planned}


def spending(rows: list[Row]) -> dict[str, Any]:
    """Training FLOPs of the ladder and the answers as they were trained, as separate whole runs would have taken them,
    and what shared trunks saved of that."""
    found = savings(rows)
    return {
        "separate_flops": found.separate,
        "trained_flops": found.trained,
        "saved": 1 - found.trained / found.separate if found.separate else 0.0,
        "trunk_flops": found.trunks,
        "seconds": total_cost(rows)[1],
        "utilisation": utilisation(rows),
    }


def grade(document: dict[str, Any], finals: Mapping[str, Row]) -> dict[str, Any]:
    """`document` with what the trained answers measured: by family, beside what was predicted."""
    graded: dict[str, Any] = {}
    for family, row in finals.items():
        predicted = document["families"][family]
        low, high = predicted["interval"]
        loss = row["target"]
        graded[family] = {
            "run_id": row["run_id"],
            "status": row["status"],
            "predicted_loss": predicted["predicted_loss"],
            "measured_loss": loss,
            "measured_accuracy": row["heldout_accuracy"],
            "inside_interval": loss is not None and low <= loss <= high,
            "seconds": row["seconds"],
            "error": row["error"],
        }
    return {**document, "finals": graded, "final": graded.get(document["best"])}
