"""The answer of a study from its table of runs: best size, images and learning rate per family, and the best family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from isoflop import laws
from isoflop.config import StudyConfig
from isoflop.errors import LawError, StudyError
from isoflop.report.interim import fit_families, p_best, without_law
from isoflop.report.savings import savings, total_cost, utilisation
from isoflop.runs.results import Row
from isoflop.study.adaptive import NEGLIGIBLE, Outlook, Stage
from isoflop.study.belief import Trial
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
    law: laws.SizeDataLaw
    frontier: laws.FrontierLaw
    learning_rate_law: laws.LearningRateLaw
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


def answer_from(config: StudyConfig, catalogue: Catalogue, rows: list[Row], outlook: Outlook | None = None) -> Answer:
    """The answer that the ladder's finished runs give; StudyError when no family has enough of them.

    After fixed rungs everything comes from the laws. An adaptive study leaves a lopsided table, to which laws of the
    best run of each size and budget fit badly; there family, size and learning rate are those of `outlook`, the
    planner's own belief in every run, and the laws say what loss to expect, within which interval.
    """
    target, level = config.study.target_flops, config.laws.level
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
            ladder = [row for row in rows if row["family"] == family and row["role"] == "ladder"]
            left_out[family] = without_law(ladder, str(error))
            del tables[family], fitted[family]
    rated = set(tables) if outlook is None else {standing.answer.family for standing in outlook.standings}
    for family in set(left_out) & rated:
        if outlook is not None and outlook.p_best(family) < NEGLIGIBLE:
            left_out[family] = f"given up early by the planner; {left_out[family]}"
    if not tables:
        told = "; ".join(f"{f}: {why}" for f, why in left_out.items())
        advice = ". The limit left too few runs: raise it, or take fewer families" if config.study.limited else ""
        raise StudyError(f"no family can be answered: {told}{advice}")
    comparison = laws.compare(tables, target, laws=fitted, level=level, seed=config.study.seed)
    standings = comparison.standings if outlook is None else _standings(comparison, outlook)
    chosen = {} if outlook is None else {standing.answer.family: standing.answer for standing in outlook.standings}
    families = tuple(
        _family_answer(catalogue, s, (fitted[s.family], frontiers[s.family]), rows, chosen.get(s.family))
        for s in standings
    )
    return Answer(target, level, families, left_out, len(rated), comparison.naive_best, comparison.naive_compute)


def _standings(comparison: laws.Comparison, outlook: Outlook) -> list[laws.Standing]:
    """The families that have a law, ranked and rated by `outlook`."""
    by_law = {standing.family: standing for standing in comparison.standings}
    return [
        replace(by_law[s.answer.family], p_best=s.p_best, regret=s.regret * math.exp(s.log_loss))
        for s in outlook.standings
        if s.answer.family in by_law
    ]


def _family_answer(
    catalogue: Catalogue,
    standing: laws.Standing,
    fits: tuple[laws.SizeDataLaw, laws.FrontierLaw],
    rows: list[Row],
    chosen: Trial | None,
) -> FamilyAnswer:
    config, (law, frontier) = catalogue.config, fits
    family, target, level = standing.family, config.study.target_flops, config.laws.level
    model = chosen.model if chosen else _nearest_preset(catalogue, family, law.size(target))
    runs = [row for row in rows if row["family"] == family and row["role"] == "ladder"]
    rates = laws.fit_learning_rate(
        [row["flops_per_image"] for row in runs],
        [row["learning_rate"] for row in runs],
        [finite_loss(row) for row in runs],
        [row["images"] for row in runs],
    )
    flops = catalogue.flops_per_image(family, model)
    best_rate = chosen.rate if chosen else float(rates.predict(flops, target / flops))
    rate = float(f"{best_rate:.2g}")
    run = catalogue.run(family, model, target, rate, role="final")
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
        warnings=(*law.warnings, *rates.warnings),
    )


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
    law = family.law
    return {
        "model": family.run.model,
        "run_id": family.run.run_id,
        "flops_per_image": family.run.flops_per_image,
        "parameters": family.run.parameters,
        "images": family.run.images,
        "steps": family.run.config.steps,
        "learning_rate": family.run.config.optim.learning_rate,
        "predicted_loss": family.predicted_loss,
        "interval": list(family.interval),
        "level": level,
        "regret": family.regret,
        "exponents": law.exponents(),
        "r_squared": family.frontier.r_squared,
        "law": law.to_dict(),
        "frontier": family.frontier.to_dict(),
        "learning_rate_law": family.learning_rate_law.to_dict(),
        "warnings": list(family.warnings),
    }


def planner_document(plan: Plan, last: Stage | None, rows: list[Row]) -> dict[str, Any]:
    """What the planner was given, how it ended, and what has been spent so far, as JSON values; `last` is its last
    stage, None on fixed rungs. `plan` has the prices that the finished runs have corrected."""
    document: dict[str, Any] = {"budgets": list(plan.catalogue.budgets), "adaptive": last is not None}
    if plan.funds and last:
        document |= {
            "unit": plan.funds.unit,
            "limit": plan.funds.total,
            "reserved": plan.funds.reserved,
            "spent": plan.funds.spent(rows),
            "ladder_spent": plan.funds.spent([row for row in rows if row["role"] == "ladder"]),
            "stop": last.stop,
            "dropped": {name: last.outlook.p_best(name) for name in last.dropped if last.outlook},
        }
    return document


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
