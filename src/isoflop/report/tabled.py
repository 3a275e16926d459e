"""The report of a CSV table.

A table of runs (sizes, images and losses, in columns of our names or of given ones) has the figures of a study. A table
of points along an axis has its laws, their intervals and residuals.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop import laws
from isoflop.errors import LawError
from isoflop.laws.columns import Columns, read_columns
from isoflop.laws.roles import Runs, read_runs
from isoflop.report.clean import NUMBERS, clean_answer, clean_rows
from isoflop.report.figure import Figure, document, figure_slots, write_whole
from isoflop.report.figures.fitted import column_title, fitted_curves, fitted_residuals, law_notes
from isoflop.report.interim import FamilyFits, answer_of_laws, comparison_entries, interim_answer
from isoflop.report.page import body, report_figures, warnings
from isoflop.report.rows import Answer, Row
from isoflop.report.tables import Cell, html_table
from isoflop.report.text import between, escape, number, quantity

OWN = ("family", "flops_per_image", "images", "heldout_loss")
"""The columns by which a table of ours is known."""
ROWS = 5000
"""Runs that the page of a foreign table shows at most."""


@dataclass(frozen=True)
class Tabled:
    """The page of a table, ready to be written, and its figures."""

    page: str
    figures: list[Figure]

    def write(self, path: Path) -> Path:
        """Write the page to `path` and return it; StudyError when the storage refuses."""
        return write_whole(path, self.page)


def tabled_report(
    table: Path,
    *,
    x: Sequence[str] = (),
    y: str | None = None,
    by: str | None = None,
    budget: float | None = None,
    accuracy: bool | None = None,
    level: float = 0.9,
) -> Tabled:
    """The report of the CSV file `table`.

    Args:
        x: the column of compute or images; or two, training FLOPs an image and images. Guessed when left out, as in
            `fit_table`, unless the file is a table of ours (`results.csv`).
        y: loss, error or accuracy. by: what separates families. budget: where to predict, in the unit of x (of two: in
            FLOPs); the largest of the table when left out.
        accuracy: whether y is one; guessed from its name if None. level: of the intervals.

    Raises LawError for a file or columns that cannot be used, and for too few points.
    """
    columns, source = read_columns(table)
    command = _command(table, x, y, by, budget)
    if y is None and not x and all(name in columns for name in OWN):
        rows = clean_rows(_own_rows(columns))
        known = [row["train_flops"] for row in rows if row["train_flops"]]
        if not known:
            raise LawError(f"{table}: no row has both a size and a number of images")
        return _page(table, rows, interim_answer(rows, budget or max(known), level), {"command": command})
    runs = read_runs(columns, source, x, y, by, accuracy)
    if len(runs.x) == 2:
        rows = _given_rows(runs)
        target = budget if budget is not None else max(row["train_flops"] for row in rows)
        fit = laws.fit_table(runs, budget=target, level=level)
        study = {"judged_by": column_title(runs.unit), "command": command}
        return _page(table, _drawn(rows), _fitted_answer(rows, fit, target, level), study)
    fit = laws.fit_table(runs, budget=budget, level=level)
    figures = [fitted_curves(fit, level), fitted_residuals(fit)]
    return Tabled(document(f"{table.name} · isoflop report", _law_body(fit, figures, command), figures), figures)


def _command(table: Path, x: Sequence[str], y: str | None, by: str | None, budget: float | None) -> str:
    """The command that writes the page again."""
    given = [*(("--x", name) for name in x), ("--y", y), ("--by", by), ("--budget", budget)]
    told = [text for name, value in given if value is not None for text in (name, str(value))]
    return shlex.join(["isoflop", "report", table.name, *told])


def _own_rows(columns: Columns) -> list[Row]:
    rows: list[Row] = []
    for k in range(len(columns["family"])):
        row: Row = {name: cells[k] for name, cells in columns.items()}
        row |= {name: _number(row[name]) for name in NUMBERS if name in row}
        row.setdefault("status", "done")
        if row.get("train_flops") is None and row["flops_per_image"] and row["images"]:
            row["train_flops"] = row["flops_per_image"] * row["images"]
        if row.get("target"):  # what the runs of a study were judged by
            row["heldout_loss"] = _number(row["target"])
        rows.append(row)
    return rows


def _given_rows(runs: Runs) -> list[Row]:
    (size, images), none = runs.axes, [None] * runs.loss.size
    unique = none if runs.unique is None else [float(u) if u == u else None for u in runs.unique]  # NaN: no repeats
    models = runs.columns.get("model") or [quantity(float(n), 3) for n in size]
    return [
        {
            "family": family, "model": model, "status": "done", "flops_per_image": float(n), "images": float(d),
            "unique_images": u, "train_flops": float(n * d), "heldout_loss": float(v),
        }
        for family, model, n, d, u, v in zip(runs.family, models, size, images, unique, runs.loss, strict=True)
    ]  # fmt: skip


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _drawn(rows: list[Row]) -> list[Row]:
    """The rows that the page shows: all, or `ROWS` of them, evenly spaced. The laws are those of all rows."""
    if len(rows) <= ROWS:
        return rows
    return [rows[k * len(rows) // ROWS] for k in range(ROWS)]


def _fitted_answer(rows: list[Row], fit: laws.TableFit, target: float, level: float) -> Answer:
    """What `isoflop fit` says of the table, in the form of a study's answer."""
    fits = FamilyFits({}, {}, {})
    for group in fit.groups:
        if group.size_data is None or group.prediction is None:
            fits.left_out[group.name] = group.refusal
        else:
            fits.laws[group.name] = group.size_data
    answer = answer_of_laws(rows, fits, target, level)
    return answer | comparison_entries(fit.comparison, answer) if fit.comparison else answer


def _page(table: Path, rows: list[Row], found: Answer, study: dict[str, Any]) -> Tabled:
    rows = clean_rows(rows)
    told = {"name": table.name, **study}
    answer: Answer = clean_answer({**found, "interim": False, "study": told})
    figures = report_figures(rows, answer, {})
    return Tabled(document(f"{table.name} · isoflop report", body(rows, answer, figures), figures), figures)


def _law_body(fit: laws.TableFit, figures: Sequence[Figure], command: str) -> str:
    return (
        '<a class="skip" href="#main">Skip to the figures</a>'
        f"<header><p class=kicker>isoflop report of a table</p><h1>{escape(fit.source)}</h1></header>"
        f'<main id="main"><section id="answer">{_predictions(fit)}{warnings(law_notes(fit.groups))}</section>'
        + "\n".join(figure_slots(figures))
        + f'<section id="reproduce"><h2>How to reproduce</h2><pre><code>{escape(command)}</code></pre></section></main>'
    )


def _predictions(fit: laws.TableFit) -> str:
    rows = []
    for group in fit.groups:
        p, curve = group.prediction, group.curve
        last = curve.x_range[1] if curve is not None else float("nan")
        lowest = min(value for _, value in group.points)
        coverage = curve.backtest_coverage if curve is not None else None
        rows.append(
            [
                Cell(group.name),
                Cell(str(group.rows), group.rows),
                Cell(quantity(last, 3), last),
                Cell(number(lowest), lowest),
                Cell(number(p.value) if p else "–", p.value if p else None, "number"),
                Cell(between(p.interval if p else None), style="number"),
                Cell(f"{100 * coverage:.0f} %" if coverage is not None else "–", style="number"),
            ]
        )
    budget = next((g.prediction.budget for g in fit.groups if g.prediction), None)
    at = f" at {quantity(budget, 3)}" if budget else ""
    heads = (
        "group", "points", f"largest {column_title(fit.x[0])}", f"lowest {column_title(fit.unit)}", f"predicted{at}",
        "interval", "backtests inside",
    )  # fmt: skip
    return html_table("predictions", "The laws of the table, one a group.", heads, rows)
