"""The answer so far: the laws fitted to the runs that have finished, long before the study itself answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop import laws
from isoflop.errors import LawError
from isoflop.laws.compare import Table
from isoflop.report import rows as table
from isoflop.report.rows import Answer, Row

BOOTSTRAP = 60


def interim_answer(rows: Sequence[Row], target: float, level: float = 0.9) -> Answer:
    """What the finished runs of the ladder say about `target` training FLOPs, in the form of a study's answer.

    Families with too few runs are in `left_out` with the reason. The size is the law's optimum, the model and the
    learning rate those of the nearest size measured.
    """
    runs = table.measured(rows, "ladder")
    tables: dict[str, Table] = {}
    fitted: dict[str, laws.SizeDataLaw] = {}
    left_out: dict[str, str] = {}
    for family in table.families(rows, {}):
        own = table.best_by(table.of_family(runs, family), "model", "budget")
        columns = tuple(np.array([row[c] for row in own], float) for c in ("flops_per_image", "images", "heldout_loss"))
        try:
            fitted[family] = laws.fit_size_data(*columns, bootstrap=BOOTSTRAP)
        except LawError as error:
            left_out[family] = str(error)
            continue
        tables[family] = (columns[0], columns[1], columns[2])
    answer: Answer = {"target_flops": target, "families": {}, "left_out": left_out, "interim": True}
    if not tables:
        return answer
    comparison = laws.compare(tables, target, laws=fitted, level=level, bootstrap=BOOTSTRAP)
    chances = {standing.family: standing.p_best for standing in comparison.standings}
    for family, law in fitted.items():
        answer["families"][family] = _entry(law, table.of_family(runs, family), target, level, chances[family])
    answer["best"] = comparison.best
    answer |= {"naive_best": comparison.naive_best, "naive_budget": comparison.naive_compute}
    return answer


def _entry(law: laws.SizeDataLaw, runs: Sequence[Row], target: float, level: float, chance: float) -> dict[str, Any]:
    size, images, loss = law.optimal(target)
    nearest = min(table.envelope(runs), key=lambda row: abs(math.log(row["flops_per_image"] / size)))
    return {
        "model": nearest.get("model"),
        "flops_per_image": size,
        "images": int(images),
        "learning_rate": nearest.get("learning_rate"),
        "predicted_loss": loss,
        "interval": list(law.optimal_interval(target, level)["loss"]),
        "level": level,
        "p_best": chance,
        "law": law.to_dict(),
        "warnings": [],
    }
