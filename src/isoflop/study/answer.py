"""From a table of runs to an answer: for each family the best size, images and learning rate, and who is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from isoflop import laws
from isoflop.config import StudyConfig
from isoflop.errors import LawError, StudyError
from isoflop.laws.compare import Table
from isoflop.report.savings import savings
from isoflop.study.adaptive import NEGLIGIBLE, Stage
from isoflop.study.belief import Trial
from isoflop.study.decide import Outlook
from isoflop.study.plan import Plan
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.store import Row, finite_loss


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
    """The families that could be fitted, best first; those that could not, with the reason."""

    target_flops: float
    level: float
    families: tuple[FamilyAnswer, ...]
    left_out: dict[str, str]
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
    target, level = config.study.target_budget, config.laws.level
    tables: dict[str, Table] = {}
    fitted: dict[str, laws.SizeDataLaw] = {}
    frontiers: dict[str, laws.FrontierLaw] = {}
    left_out: dict[str, str] = {}
    for family in config.families:
        table = best_rates([row for row in rows if row["family"] == family and row["role"] == "ladder"])
        sizes, images, losses = ([row[name] for row in table] for name in ("flops_per_image", "images", "target"))
        options = {"seed": config.study.seed, "bootstrap": config.laws.bootstrap}
        try:
            points = laws.frontier_points(sizes, images, losses)
            frontiers[family] = laws.fit_frontier(points.compute, points.loss, **options)
            fitted[family] = laws.fit_size_data(sizes, images, losses, **options)
        except LawError as error:
            given_up = outlook is not None and outlook.p_best(family) < NEGLIGIBLE
            left_out[family] = f"{'given up early by the planner: ' if given_up else ''}{error}"
            continue
        tables[family] = (sizes, images, losses)
    if not tables:
        raise StudyError("no family can be answered: " + "; ".join(f"{f}: {why}" for f, why in left_out.items()))
    comparison = laws.compare(tables, target, laws=fitted, level=level, seed=config.study.seed)
    standings = comparison.standings if outlook is None else _standings(comparison, outlook)
    chosen = {} if outlook is None else {standing.answer.family: standing.answer for standing in outlook.standings}
    families = tuple(
        _family_answer(
            catalogue, s, (fitted[s.family], frontiers[s.family]), tables[s.family], rows, chosen.get(s.family)
        )
        for s in standings
    )
    return Answer(target, level, families, left_out, comparison.naive_best, comparison.naive_compute)


def best_rates(rows: list[Row]) -> list[Row]:
    """The finished run with the best learning rate of each (model, budget), small to large; copies are one run of
    their mean loss."""
    copies: dict[tuple[str, float, float], list[Row]] = {}
    for row in rows:
        if math.isfinite(finite_loss(row)):
            copies.setdefault((row["model"], row["budget"], row["learning_rate"]), []).append(row)
    best: dict[tuple[str, float], Row] = {}
    for (model, budget, _), alike in copies.items():
        mean = sum(finite_loss(row) for row in alike) / len(alike)
        if mean < (best[model, budget]["target"] if (model, budget) in best else math.inf):
            best[model, budget] = {**alike[0], "target": mean}
    return [best[key] for key in sorted(best, key=lambda key: (best[key]["flops_per_image"], key[1]))]


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
    table: Table,
    rows: list[Row],
    chosen: Trial | None,
) -> FamilyAnswer:
    config, (law, frontier) = catalogue.config, fits
    family, target, level = standing.family, config.study.target_budget, config.laws.level
    model = chosen.model if chosen else _nearest_preset(catalogue, family, law.optimal(target)[0])
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
    low, high = law.interval(flops, run.images, level)
    return FamilyAnswer(
        family=family,
        run=run,
        predicted_loss=float(law.predict(flops, run.images)),
        interval=(float(low), float(high)),
        p_best=standing.p_best,
        regret=standing.regret,
        law=law,
        frontier=frontier,
        learning_rate_law=rates,
        warnings=(*law.warnings, *rates.warnings, *_edge_warning(laws.frontier_points(*table), family)),
    )


def _nearest_preset(catalogue: Catalogue, family: str, flops_per_image: float) -> str:
    """The preset of the family's ladder, or of the named sizes, whose FLOPs an image are nearest to the optimum."""
    return min(
        catalogue.presets(family),
        key=lambda name: abs(math.log(catalogue.flops_per_image(family, name) / flops_per_image)),
    )


def _edge_warning(points: laws.FrontierPoints, family: str) -> tuple[str, ...]:
    edges = [f"{c:.2g}" for c, on_edge in zip(points.compute, points.on_edge, strict=True) if on_edge]
    if not edges:
        return ()
    return (f"the best {family} at {', '.join(edges)} FLOPs was the smallest or largest size tried: widen `sizes`",)


def answer_document(answer: Answer) -> dict[str, Any]:
    """The answer as JSON values, for `answer.json` and the report."""
    return {
        "target_flops": answer.target_flops,
        "best": answer.best.family,
        "naive_best": answer.naive_best,
        "naive_budget": answer.naive_budget,
        "left_out": answer.left_out,
        "families": {family.family: _family_document(family, answer.level) for family in answer.families},
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
        "p_best": family.p_best,
        "regret": family.regret,
        "exponents": law.exponents(),
        "r_squared": family.frontier.r_squared,
        "law": law.to_dict(),
        "frontier": family.frontier.to_dict(),
        "learning_rate_law": family.learning_rate_law.to_dict(),
        "warnings": list(family.warnings),
    }


def planner_document(plan: Plan, last: Stage | None) -> dict[str, Any]:
    """What the planner was given and how it ended, as JSON values; `last` is its last stage, None on fixed rungs."""
    document: dict[str, Any] = {"budgets": list(plan.catalogue.budgets), "adaptive": last is not None}
    if plan.funds and last:
        document |= {
            "unit": plan.funds.unit,
            "limit": plan.funds.total,
            "reserved": plan.funds.reserved,
            "spent": last.spent,
            "stop": last.stop,
            "dropped": {name: last.outlook.p_best(name) for name in last.dropped if last.outlook},
        }
    return document


def spending(rows: list[Row]) -> dict[str, Any]:
    """Training FLOPs of the ladder and the answers as they were trained, as separate whole runs would have taken them,
    and what shared trunks and stopped runs saved of that."""
    found = savings(rows)
    return {
        "separate_flops": found.separate,
        "trained_flops": found.trained,
        "saved": 1 - found.trained / found.separate if found.separate else 0.0,
        "trunk_flops": found.trunks,
        "stop_flops": found.stops,
        "stopped_runs": found.stopped,
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
