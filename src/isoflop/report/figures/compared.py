"""The figures of a comparison: one panel a family, one colour a study, over the same compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.report import rows as table
from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.law import family_laws
from isoflop.report.metric import metric_of
from isoflop.report.studies import StudyTables, differences, in_all, named, reach
from isoflop.report.theme import family_color, family_symbol


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
