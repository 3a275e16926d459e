"""The tables of a report as HTML that works without a script; with one, the table of runs can be sorted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.report import rows as table
from isoflop.report.figure import family_color
from isoflop.report.rows import Answer, Row, metric_of
from isoflop.report.savings import HOURS_HEADS, hours_rows, utilisation
from isoflop.report.text import UNTOLD, between, duration, escape, number, percent, quantity, share_of


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what it sorts by (where that is not the text), and a CSS class."""

    text: str
    order: float | None = None
    style: str = ""


def html_table(
    key: str, caption: str, heads: Sequence[str], body: Iterable[Sequence[Cell]], sortable: bool = False
) -> str:
    """A table with a caption; the cells are escaped, numbers stand right."""
    lines = [f'<table id="{escape(key)}"{" class=sortable" if sortable else ""}><caption>{escape(caption)}</caption>']
    lines.append(
        "<thead><tr>" + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr></thead><tbody>"
    )
    for cells in body:
        lines.append("<tr>" + "".join(map(_cell, cells)) + "</tr>")
    lines.append("</tbody></table>")
    return '<div class="scroll" tabindex="0" role="group" aria-label="table">' + "\n".join(lines) + "</div>"


def _cell(cell: Cell) -> str:
    order = f' data-order="{cell.order:.8g}"' if cell.order is not None else ""
    style = " ".join(filter(None, [cell.style, "number" if cell.order is not None else ""]))
    return f"<td{order}" + (f' class="{style}"' if style else "") + f">{escape(cell.text)}</td>"


def _number(value: Any, digits: int = 3) -> Cell:
    return Cell(number(value, digits), float(value)) if table.finite(value) else Cell("–", style="number")


def _percent(value: Any) -> Cell:
    return Cell(share_of(value), float(value)) if table.finite(value) else Cell("–", style="number")


def _count(value: Any) -> Cell:
    return Cell(f"{value:,.0f}", float(value)) if table.finite(value) else Cell("–", style="number")


def _quantity(value: Any) -> Cell:
    return Cell(quantity(value, 3), float(value)) if table.finite(value) else Cell("–", style="number")


def _accuracy(predicted: Any, measured: Any) -> Cell:
    """The measured one, or about what is predicted."""
    if table.finite(measured) or not table.finite(predicted):
        return _percent(measured)
    return Cell(f"≈ {share_of(predicted)}", float(predicted))


def _share(value: Any) -> Cell:
    return Cell(percent(value), float(value)) if table.finite(value) else Cell("–", style="number")


def summary(rows: Sequence[Row], answer: Answer) -> str:
    """One line a family: what it would train at the target and what that should give; then what was measured."""
    entries: dict[str, Any] = answer.get("families") or {}
    if not entries:
        return ""
    trained = table.final_runs(rows, answer)
    sized = any(table.finite((entry or {}).get("parameters")) for entry in entries.values())
    learns = table.contenders((answer.get("study") or {}).get("config"), table.families(rows, answer))
    body = []
    for position, family in enumerate(table.families(rows, answer)):
        entry = entries.get(family) or {}
        left_out = (answer.get("left_out") or {}).get(family)
        bounds = between(table.interval(entry))
        run = trained.get(family, {})
        spent = run.get("seconds")
        hours = spent / 3600 if table.finite(spent) else entry.get("hours")
        images = run.get("images", entry.get("images"))
        speed = images / (3600 * hours) if table.finite(images) and table.finite(hours) and hours > 0 else None
        body.append(
            [
                Cell(
                    family, style=f"swatch {family_color(position)}" + (" best" if family == answer.get("best") else "")
                ),
                Cell("no law" if left_out else str(entry.get("model", "–"))),
                _accuracy(entry.get("predicted_accuracy"), run.get("heldout_accuracy")),
                _number(entry.get("p_best"), 2),
                _number(entry.get("predicted_loss")),
                Cell("not known" if bounds == UNTOLD else bounds, style="number"),
                _number(run.get("heldout_loss")),
                _quantity(entry.get("parameters")),
                _quantity(entry.get("images")),
                Cell(duration(3600 * hours), float(hours)) if table.finite(hours) else Cell("–", style="number"),
                _quantity(speed),
                Cell(quantity(entry.get("learning_rate")), style="number"),
                _quantity(None if sized else entry.get("flops_per_image")),
                Cell(learns.get(family, ""), style="wide"),
            ]
        )
    level = next((e.get("level") for e in entries.values() if e and table.finite(e.get("level"))), 0.9)
    heads = [
        "family",
        "model",
        "held-out accuracy",
        "P(best)",
        f"predicted {metric_of(answer).short}",
        f"{100 * level:.0f} % interval",
        "measured",
        "parameters",
        "images",
        "time",
        "images/s",
        "learning rate",
        "FLOPs per image",
        "learns",
    ]
    caption = (
        f"What each family would train with {quantity(answer.get('target_flops'))} FLOPs, or in the time of the best, "
        "and what that should give."
    )
    shares = {family: utilisation(table.of_family(rows, family)) for family in table.families(rows, answer)}
    if known := [f"{family} {percent(share)}" for family, share in shares.items() if share is not None]:
        caption += f" Utilisation of the device's peak: {', '.join(known)}."
    compared = any(table.finite(entry.get("p_best")) for entry in entries.values() if entry)
    caption += " P(best) compares those that trained." if answer.get("left_out") and compared else ""
    caption += "".join(f" {family} is not compared: {why}." for family, why in (answer.get("left_out") or {}).items())
    return html_table("summary", caption, *_filled(heads, body))


def _filled(heads: Sequence[str], body: Sequence[Sequence[Cell]]) -> tuple[list[str], list[list[Cell]]]:
    """A table without the columns in which no cell says anything."""
    kept = [i for i in range(len(heads)) if not body or any(cells[i].text not in ("–", "") for cells in body)]
    return [heads[i] for i in kept], [[cells[i] for i in kept] for cells in body]


def starts(answer: Answer) -> str:
    """The trained weights that families start from; "" where none does."""
    found = answer.get("starts")
    if not found:
        return ""
    body = []
    for family, start in found.items():
        probe = start.get("probe")
        probe = probe if isinstance(probe, dict) else {}
        told = [Cell(str(family)), Cell(str(start.get("weights"))), Cell(str(start.get("model")))]
        told += [_count(start.get("image_size")), Cell(str(start.get("licence") or "–"))]
        body.append([*told, _count(probe.get("images")), _number(probe.get("accuracy")), _number(probe.get("loss"))])
    caption = (
        "Trained weights that families start from, as they are: logistic regression on frozen features of some "
        "training images, judged on held-out ones. Runs begin with it as their classifier."
    )
    heads = ("family", "weights", "model", "image size", "licence", "images", "accuracy", "loss")
    return html_table("starts", caption, *_filled(heads, body))


def hours(answer: Answer) -> str:
    """Hours planned and spent, or nothing."""
    found = hours_rows(answer)
    body = [[Cell(name), *(Cell(cell, style="number") for cell in cells)] for name, *cells in found]
    caption = "Hours by the clock: those of the ladder, of the answer, and of preparation, evaluation, fits and report."
    return html_table("hours-table", caption, HOURS_HEADS, body) if found else ""


def transfer(answer: Answer) -> str:
    """The transfer results of the answer beside their baselines, or nothing."""
    found = (answer.get("transfer") or {}).get("rows") or []
    if not found:
        return ""
    body = [
        [
            Cell(str(row.get("name", "–"))),
            Cell(str(row.get("protocol", "–"))),
            Cell(str(row.get("dataset", "–"))),
            _count(row.get("shots")),
            _number(row.get("accuracy_mean")),
            _number(row.get("accuracy_std")),
            _count(row.get("seeds")),
        ]
        for row in found
    ]
    heads = ["weights", "protocol", "dataset", "shots", "accuracy", "± (std)", "seeds"]
    return html_table(
        "transfer-table", "Accuracy on data that was never trained on, mean and deviation over seeds.", heads, body
    )


def runs(rows: Sequence[Row], answer: Answer) -> str:
    """Every run of the study, finished or not, in the order of the plan."""
    body = [
        [
            Cell(str(row.get("model", "–"))),
            _number(row.get("heldout_loss")),
            _percent(row.get("heldout_accuracy")),
            _percent(row.get("probe_accuracy")),
            _number(row.get("rankme")),
            _quantity(row.get("images")),
            _quantity(row.get("learning_rate")),
            Cell(duration(row["seconds"]), row["seconds"])
            if table.finite(row.get("seconds"))
            else Cell("–", style="number"),
            _quantity(row["images"] / row["seconds"] if table.positive(row, "images", "seconds") else None),
            _quantity(row.get("parameters")),
            _quantity(row.get("flops_per_image")),
            _quantity(row.get("train_flops")),
            _share(row.get("utilisation")),
            Cell(str(row.get("family", "–"))),
            Cell(str(row.get("role", "–"))),
            _outcome(row),
            Cell(str(row.get("run_id", "–"))[:10], style="code"),
        ]
        for row in rows
    ]
    metric = metric_of(answer)
    heads = (
        "model", metric.name, "held-out accuracy", "probe accuracy", "RankMe", "images", "learning rate", "time",
        "images/s", "parameters",
        "FLOPs per image", "training FLOPs", "utilisation", "family", "role", "outcome", "run",
    )  # fmt: skip
    caption = f"All {len(rows)} runs; {len(table.measured(rows))} finished with a {metric.short}."
    return html_table("runs-table", f"{caption} A column's head sorts by it.", *_filled(heads, body), sortable=True)


def _outcome(row: Row) -> Cell:
    status, error = str(row.get("status", "–")), str(row.get("error") or "")[:300]
    style = "bad wide" if status in table.BROKEN else "wide" if error else ""
    return Cell(f"{status}: {error}" if error else status, style=style)
