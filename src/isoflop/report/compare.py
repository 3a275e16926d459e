"""Comparison of several studies: two data sets, two objectives, two versions, aligned by compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import StudyError
from isoflop.report import rows as table
from isoflop.report.clean import clean_answer, clean_rows
from isoflop.report.figure import (
    Axis,
    Figure,
    Panel,
    Series,
    document,
    family_color,
    family_symbol,
    figure_slots,
    write_whole,
)
from isoflop.report.law import answer_sentence, family_laws, study_name
from isoflop.report.rows import HELDOUT, Answer, Row, metric_key, metric_of
from isoflop.report.tables import Cell, html_table
from isoflop.report.text import escape, number, quantity

# What differs between studies, in numbers and in sentences.


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
        return [*told, f"{', '.join(without)} has no finished run: there is nothing to compare."]
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
        f"These studies are on different data ({which}): their losses have different scales and cannot be compared "
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


# The figures of a comparison: one panel a family, one colour a study, over the same compute.


def compared_frontiers(studies: Sequence[StudyTables]) -> Figure:
    """One panel a family: the best runs and the law of every study over the same compute."""
    studies, metric = named(studies), metric_of(studies[0].answer)
    key, title = "compared-frontiers", f"{metric.capital} against compute, study beside study"
    panels: list[Panel] = []
    for family in sorted(in_all(studies)) or sorted({f for s in studies for f in table.families(s.rows, s.answer)}):
        series: list[Series] = []
        for position, study in enumerate(studies):
            best = table.envelope(table.of_family(table.measured(study.rows, "ladder"), family))
            if not best:
                continue
            look: dict[str, Any] = {"group": study.name, "color": family_color(position)}
            law = family_laws(study.answer).get(family)
            if law is not None:
                compute = np.geomspace(best[0]["train_flops"], reach(studies), 50)
                series.append(Series("line", compute, law.frontier(compute), **look))
            series.append(
                Series(
                    "points",
                    [row["train_flops"] for row in best],
                    [row["heldout_loss"] for row in best],
                    name=study.name if not panels else "",
                    symbol=family_symbol(position),
                    size=8,
                    notes=[f"{study.name}: {table.describe(row, metric)}" for row in best],
                    **look,
                )
            )
        if series:
            panels.append(
                Panel(Axis("training compute (FLOPs)", "log"), Axis(metric.axis, "log"), tuple(series), family)
            )
    if not panels:
        return Figure.missing(key, title, "No study has a finished run.")
    return Figure(
        key=key,
        title=title,
        caption="Markers are the best run of each budget, lines the laws. Different tasks have different"
        " scales: compare slopes and crossings, not heights.",
        alt=" ".join(differences(studies)),
        panels=tuple(panels),
        height=400 if len(panels) <= 3 else 700,
        share_y=True,
    )


def compared_sizes(studies: Sequence[StudyTables]) -> Figure:
    """One panel a family: how the best size grows with compute in every study."""
    key, title = "compared-sizes", "Best size against compute, study beside study"
    studies = named(studies)
    panels: list[Panel] = []
    for family in sorted({f for s in studies for f in family_laws(s.answer)}):
        series = []
        for position, study in enumerate(studies):
            law = family_laws(study.answer).get(family)
            if law is None or law.size_data is None:
                continue
            compute = np.geomspace(law.size_data.compute_range[0], reach(studies), 40)
            note = f"{study.name}: exponents of size and images {law.exponents()}"
            series.append(
                Series(
                    "line",
                    compute,
                    law.optimum(compute)[0],
                    name=study.name if not panels else "",
                    group=study.name,
                    color=family_color(position),
                    notes=[note],
                )
            )
        panels.append(
            Panel(
                Axis("training compute (FLOPs)", "log"),
                Axis("best size (training FLOPs per image)", "log"),
                tuple(series),
                family,
            )
        )
    if not panels:
        return Figure.missing(key, title, "No study has a law yet.")
    return Figure(
        key=key,
        title=title,
        caption="The size that each study's law calls best. Parallel lines mean the same exponent.",
        alt="Best size against compute, one line a study, one panel a family.",
        panels=tuple(panels),
        height=400 if len(panels) <= 3 else 700,
        share_y=True,
    )


def write_comparison(studies: Sequence[StudyTables], path: Path) -> Path:
    """Write one page that lays `studies` (two or more) side by side; returns `path`.

    Raises StudyError for fewer, and for losses of different objectives, which say nothing about each other.
    """
    if len(studies) < 2:
        raise StudyError("a comparison needs two studies or more")
    _check_comparable(studies)
    studies = named(studies)
    figures = [compared_frontiers(studies), compared_sizes(studies)]
    sentences = "".join(f"<li>{escape(text)}</li>" for text in differences(studies))
    answers = "".join(
        f"<dt>{escape(study.name)}</dt><dd>{escape(answer_sentence(study.rows, study.answer))}</dd>"
        for study in studies
    )
    body = (
        '<a class="skip" href="#main">Skip to the differences</a>'
        "<header><p class=kicker>isoflop comparison</p>"
        f"<h1>{escape(' · '.join(study.name for study in studies))}</h1></header>"
        f'<main id="main"><section id="answer"><ul class="answer plain">{sentences}</ul>{_table(studies)}</section>'
        f'<section id="answers"><h2>What each study answers</h2><dl>{answers}</dl></section>'
        + "\n".join(figure_slots(figures))
        + "</main>"
    )
    return write_whole(path, document("isoflop comparison", body, figures))


def _check_comparable(studies: Sequence[StudyTables]) -> None:
    learnt: set[str] = set()
    metrics: set[str] = set()
    for study in studies:
        config = (study.answer.get("study") or {}).get("config")
        told = config if isinstance(config, dict) else {}
        learnt |= table.objectives(told)
        metrics.add(metric_key(told))
    if len(metrics) > 1:
        raise StudyError(
            f"studies that are judged by different metrics ({', '.join(sorted(metrics))}) cannot be compared"
        )
    if len(learnt) > 1 and HELDOUT in metrics:
        raise StudyError(
            f"losses of different objectives ({', '.join(sorted(learnt))}) cannot be compared: judge both studies "
            "by a transfer metric (`target.metric` = fewshot10, say)"
        )


def _table(studies: Sequence[StudyTables]) -> str:
    compute = common_compute(studies)
    body = []
    for study in studies:
        laws = family_laws(study.answer)
        for family in table.families(study.rows, study.answer):
            law = laws.get(family)
            known = law.size_data if law is not None else None
            n, _, loss = known.optimal(compute) if known is not None and compute else (math.nan,) * 3
            entry = (study.answer.get("families") or {}).get(family) or {}
            chance = entry.get("p_best")
            body.append(
                [
                    Cell(study.name),
                    Cell(family, style="best" if family == study.answer.get("best") else ""),
                    Cell(number(loss), loss if math.isfinite(loss) else None, "number"),
                    Cell(quantity(n, 3), n if math.isfinite(n) else None, "number"),
                    Cell(number(known.exponents()["size"], 2) if known else "–", style="number"),
                    Cell(number(chance, 2), chance if table.finite(chance) else None, "number"),
                ]
            )
    at = f" at {quantity(compute)} FLOPs" if compute else ""
    heads = (
        "study",
        "family",
        f"{metric_of(studies[0].answer).short}{at}",
        f"best size{at}",
        "exponent of size",
        "P(best) at its target",
    )
    return html_table("compared", "The laws of each study at the same compute.", heads, body, sortable=True)
