"""Several studies side by side: two datasets, two objectives, two versions, aligned on compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from isoflop.errors import StudyError
from isoflop.report import headline
from isoflop.report import rows as table
from isoflop.report.figures.compared import compared_frontiers, compared_sizes
from isoflop.report.law import family_laws
from isoflop.report.metric import HELDOUT, metric_key, metric_of
from isoflop.report.page import write_whole
from isoflop.report.shell import document, figure_slot
from isoflop.report.studies import StudyTables, common_compute, differences, named
from isoflop.report.tables import Cell, html_table
from isoflop.report.text import escape, number, quantity


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
        f"<dt>{escape(study.name)}</dt><dd>{escape(headline.sentence(study.rows, study.answer))}</dd>"
        for study in studies
    )
    body = (
        '<a class="skip" href="#main">Skip to the differences</a>'
        "<header><p class=kicker>isoflop comparison</p>"
        f"<h1>{escape(' · '.join(study.name for study in studies))}</h1></header>"
        f'<main id="main"><section id="answer"><ul class="answer plain">{sentences}</ul>{_table(studies)}</section>'
        f'<section id="answers"><h2>What each study answers</h2><dl>{answers}</dl></section>'
        + "\n".join(figure_slot(figure, i) for i, figure in enumerate(figures, 1))
        + "</main>"
    )
    return write_whole(path, document("isoflop comparison", body, figures))


def _check_comparable(studies: Sequence[StudyTables]) -> None:
    objectives: set[str] = set()
    metrics: set[str] = set()
    for study in studies:
        config = (study.answer.get("study") or {}).get("config")
        told = config if isinstance(config, dict) else {}
        objectives.add(str((told.get("objective") or {}).get("name", "supervised")))
        metrics.add(metric_key(told))
    if len(metrics) > 1:
        raise StudyError(
            f"studies that are judged by different metrics ({', '.join(sorted(metrics))}) cannot be compared"
        )
    if len(objectives) > 1 and HELDOUT in metrics:
        raise StudyError(
            f"losses of different objectives ({', '.join(sorted(objectives))}) cannot be compared: judge both studies "
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
