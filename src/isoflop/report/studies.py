"""What differs between studies, in numbers and in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.report import rows as table
from isoflop.report.clean import clean_answer, clean_rows
from isoflop.report.headline import study_name
from isoflop.report.law import family_laws
from isoflop.report.metric import metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import number, quantity

SAME = 0.02
"""Losses within 2 % of each other, and sizes within 10 %, are called the same."""
SAME_SIZE = 0.10


@dataclass(frozen=True)
class StudyTables:
    """One study's results: its table of runs and its answer (which may be empty)."""

    rows: Sequence[Row]
    answer: Answer = field(default_factory=dict)
    name: str = ""


def named(studies: Sequence[StudyTables]) -> list[StudyTables]:
    """The studies with names that differ."""
    named: list[StudyTables] = []
    for study in studies:
        name = wanted = study.name or study_name(study.answer)
        count = 1
        while any(other.name == name for other in named):
            count += 1
            name = f"{wanted} ({count})"
        named.append(StudyTables(clean_rows(study.rows), clean_answer(study.answer), name))
    return named


def common_compute(studies: Sequence[StudyTables]) -> float | None:
    """The largest budget that every study has measured up to, in training FLOPs; None when one has measured nothing."""
    tops = [max((row["train_flops"] for row in table.measured(s.rows, "ladder")), default=None) for s in studies]
    known = [top for top in tops if top is not None]
    return float(min(known)) if len(known) == len(tops) else None


def in_all(studies: Sequence[StudyTables]) -> set[str]:
    """The families that every study has."""
    return set.intersection(*(set(table.families(s.rows, s.answer)) for s in studies))


def reach(studies: Sequence[StudyTables]) -> float:
    """The largest compute measured or aimed at, in training FLOPs."""
    seen = [row["train_flops"] for s in studies for row in table.measured(s.rows, "ladder")]
    return float(max(seen + [s.answer["target_flops"] for s in studies if table.finite(s.answer.get("target_flops"))]))


def differences(studies: Sequence[StudyTables]) -> list[str]:
    """What differs between the studies, in sentences: best families, then loss, size and exponents by family.

    Losses are compared at `common_compute`; those of different tasks have different scales, and the page says so.
    """
    studies = named(studies)
    told: list[str] = []
    comparable = _on_same_data(studies, told)
    best = {s.name: str(s.answer["best"]) for s in studies if s.answer.get("best")}
    if len(best) == len(studies):
        if len(set(best.values())) == 1:
            told.append(f"All agree on the best family: {next(iter(best.values()))}.")
        else:
            told.append("They disagree on the best family: " + ", ".join(f"{b} in {n}" for n, b in best.items()) + ".")
    compute = common_compute(studies)
    if compute is None:
        without = [s.name for s in studies if not table.measured(s.rows, "ladder")]
        return [*told, f"{', '.join(without)} has no finished run: there is nothing to compare with."]
    told.append(f"Compared at {quantity(compute)} training FLOPs, the largest compute that all of them reach.")
    first, metric = studies[0], metric_of(studies[0].answer)
    laws = {study.name: family_laws(study.answer) for study in studies}
    for family in table.families(first.rows, first.answer):
        base = laws[first.name].get(family)
        for other in studies[1:]:
            law = laws[other.name].get(family)
            if base is None or law is None or base.size_data is None or law.size_data is None:
                continue
            (n0, _, loss0), (n1, _, loss1) = base.size_data.optimal(compute), law.size_data.optimal(compute)
            loss = (
                f"{family}: the {metric.short} is {_ratio(loss0, loss1, SAME, 'lower', 'higher')} in {other.name} "
                f"({number(loss1)}) than in {first.name} ({number(loss0)}), and the best size is "
                if comparable
                else f"{family} in {other.name} than in {first.name}: the best size is "
            )
            told.append(
                f"{loss}{_ratio(n0, n1, SAME_SIZE, 'smaller', 'larger')} "
                f"({quantity(n1)} against {quantity(n0)} FLOPs an image)."
            )
    left = sorted({f for s in studies for f in table.families(s.rows, s.answer)} - in_all(studies))
    if left:
        told.append(f"Not in all of them: {', '.join(left)}.")
    return told


def data_of(study: StudyTables) -> tuple[Any, ...]:
    """What the study says of its data: where they are, how many images and classes; () where it does not."""
    config = (study.answer.get("study") or {}).get("config")
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict):
        return ()
    images = max((row["unique_images"] for row in study.rows if table.finite(row.get("unique_images"))), default=None)
    return data.get("source"), images, data.get("num_classes")


def _on_same_data(studies: Sequence[StudyTables], told: list[str]) -> bool:
    """Whether the losses of the studies can be compared; where not, the first sentence of `told` says so."""
    data = {study.name: found for study in studies if (found := data_of(study))}
    if len(set(data.values())) < 2:
        return True
    which = "; ".join(
        f"{name}: {found[0]}" + (f", {found[1]:,} images" if found[1] else "") for name, found in data.items()
    )
    told.append(
        f"These studies are on different data ({which}): their losses have different scales and say nothing "
        "about each other; sizes and exponents may be compared."
    )
    return False


def _ratio(before: float, after: float, same: float, less: str, more: str) -> str:
    ratio = after / before
    if abs(math.log(ratio)) <= math.log1p(same):
        return f"no {more}"
    if ratio > 2 or ratio < 0.5:
        return f"{max(ratio, 1 / ratio):.1f} times {more if ratio > 1 else less}"
    return f"{100 * abs(ratio - 1):.0f}\u00a0% {more if ratio > 1 else less}"
