"""The report of a study: one HTML file with the answer, the figures, the runs and the commands that reproduce them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.report import figures as draw
from isoflop.report import rows as table
from isoflop.report import tables
from isoflop.report.clean import clean_answer, clean_confusion, clean_curves, clean_rows
from isoflop.report.evaluation import confusion
from isoflop.report.figure import Figure, document, figure_slots, write_whole
from isoflop.report.law import MOST_WARNINGS, answer_sentence, answer_warnings, headline, study_name
from isoflop.report.rows import Answer, Row, metric_of
from isoflop.report.savings import hours_rows, limit_sentence, price_per_hour, savings, total_cost, utilisation
from isoflop.report.text import between, duration, escape, number, percent, quantity, share_of

# Pictures in a page: PNG files inside of the HTML, each with a title and what it shows.


@dataclass(frozen=True)
class Picture:
    """A PNG file in base64, a title, and a caption that says what is to be seen."""

    title: str
    caption: str
    png: str


def _pictures(pictures: Sequence[Picture]) -> str:
    return "".join(
        f'<figure><img src="data:image/png;base64,{picture.png}" alt="{escape(picture.title)}" '
        f'style="max-width:100%"><figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}'
        "</figcaption></figure>"
        for picture in pictures
    )


def write_report(
    rows: Sequence[Row],
    answer: Answer,
    curves: Mapping[str, Mapping[str, Any]],
    path: Path,
    pictures: Sequence[Picture] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a study to `path` and return it. The file is complete or not there.

    Args:
        rows: the table of results, one dict a run; unfinished and failed runs too.
        answer: the study's answer; may be empty or lack parts, which the page then lacks.
        curves: run id → `step`, `images`, `train_loss`, `heldout_loss` lists of equal length, None where not measured.
        path: the HTML file; its folder must exist.
        pictures: what masked runs made of images, and where the answer looks.
        evaluation: `Evaluation.document()` of what is handed over, on the test part.
    """
    return write_whole(path, render(rows, answer, curves, pictures, evaluation))


def render(
    rows: Sequence[Row],
    answer: Answer,
    curves: Mapping[str, Mapping[str, Any]],
    pictures: Sequence[Picture] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The report as the text of an HTML file."""
    rows, answer = clean_rows(rows), clean_answer(answer)
    shown = [figure for figure in all_figures(rows, answer, clean_curves(curves)) if figure.panels]
    return document(f"{study_name(answer)} · isoflop report", body(rows, answer, shown, pictures, evaluation), shown)


def report_figures(rows: Sequence[Row], answer: Answer, curves: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """The figures of a report that have something to show, in order."""
    rows, answer, curves = clean_rows(rows), clean_answer(answer), clean_curves(curves)
    return [figure for figure in all_figures(rows, answer, curves) if figure.panels]


def all_figures(rows: Sequence[Row], answer: Answer, curves: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """The figures of a report, in order; those without anything to show say why."""
    return [
        draw.frontier(rows, answer),
        draw.profiles(rows, answer),
        draw.optima(rows, answer),
        draw.agreement(rows, answer),
        draw.efficiency(rows, answer),
        draw.learning_rates(rows, answer),
        draw.curves(rows, answer, curves),
        draw.hours(rows, answer),
        draw.families_compared(rows, answer),
        draw.cost(rows, answer),
        draw.labels(rows, answer),
        draw.transfer_bars(answer, rows),
        draw.attention_distance((answer.get("attention") or {}).get("pixels") or []),
    ]


def body(
    rows: Sequence[Row],
    answer: Answer,
    shown: Sequence[Figure],
    pictures: Sequence[Picture] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Everything between `<body>` and the scripts."""
    sentence, head = answer_sentence(rows, answer), headline(rows, answer)
    told = f'<p class="told">{escape(sentence)}</p>' if sentence != head else ""
    # Loss against compute stands beside the answer, where there is one.
    first, others = (1, shown[1:]) if shown and shown[0].key == "frontier" else (0, shown)
    slots = figure_slots(shown)
    numbers = tables.summary(rows, answer) + tables.starts(answer) + facts(rows, answer) + tables.hours(answer)
    sections = [
        _section("numbers", "The answer in numbers", told + numbers),
        ("confusion", "Confusion matrix", confusion(clean_confusion(evaluation))),
        *((figure.key, figure.title.split(":")[0], slot) for figure, slot in zip(others, slots[first:], strict=True)),
        _section("pictures", "What the models see", _pictures(pictures)),
        _section("transfer-numbers", "Transfer in numbers", tables.transfer(answer)),
        _section("runs", "Runs", tables.runs(rows, answer) if rows else ""),
        _section("reproduce", "How to reproduce", _reproduce(rows, answer)),
    ]
    sections = [(key, title, content) for key, title, content in sections if content]
    links = "".join(f'<li><a href="#{escape(key)}">{escape(title)}</a></li>' for key, title, _ in sections)
    nav = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if links else ""
    return (
        '<a class="skip" href="#main">Skip to the answer</a>'
        f"<header><p class=kicker>isoflop study</p><h1>{escape(study_name(answer))}</h1></header>"
        f'<main id="main"><section id="answer" aria-label="The answer"><p class="answer">{escape(head)}</p>'
        f"{_tiles(rows, answer)}{''.join(slots[:first])}{warnings(answer_warnings(answer))}</section>{nav}"
        "<noscript><p class=empty>The figures need JavaScript; the tables do not.</p></noscript>"
        + "\n".join(content for *_, content in sections)
        + "</main>"
    )


def _section(key: str, title: str, content: str) -> tuple[str, str, str]:
    """A section's key and title, and its HTML; "" where it has nothing to show."""
    return key, title, f'<section id="{key}"><h2>{title}</h2>{content}</section>' if content else ""


def _tiles(rows: Sequence[Row], answer: Answer) -> str:
    """How good the answer is, how sure, what it took: a list of a few numbers."""
    entry, metric = (answer.get("families") or {}).get(answer.get("best")) or {}, metric_of(answer)
    run = answer.get("selected") or table.final_run(rows, answer) or {}
    bounds = table.interval(entry)
    found: list[tuple[str, str, str]] = []
    judged: Any = run.get("accuracy")
    judged = judged if isinstance(judged, Mapping) else {}
    if table.finite(judged.get("accuracy")):
        ends = table.interval(dict(judged))
        span = f"{number(100 * ends[0], 1)}–{share_of(ends[1])}, " if ends else ""
        part = "test" if judged.get("part") == "test" else "held-out"
        found.append((f"{part} accuracy", share_of(judged["accuracy"]), f"{span}{judged['images']:,} images"))
    elif table.finite(run.get("heldout_accuracy")):
        found.append(("held-out accuracy", share_of(run["heldout_accuracy"]), "of the run that is handed over"))
    elif table.finite(entry.get("predicted_accuracy")):
        found.append(("held-out accuracy", f"≈ {share_of(entry['predicted_accuracy'])}", "expected"))
    expected, span = number(entry.get("predicted_loss")), f" ({between(bounds)})" if bounds else ""
    loss = run.get("loss", run.get("heldout_loss"))
    if table.finite(loss):
        found.append((metric.name, number(loss), f"expected {expected}{span}"))
    elif entry:
        found.append((metric.name, f"≈ {expected}", f"expected{span}"))
    if entry and table.finite(entry.get("p_best")) and len(answer.get("families") or ()) > 1:
        count = len(answer["families"])
        found.append((f"P({answer['best']} is best)", number(entry["p_best"], 2), f"of {count} families"))
    flops, seconds = total_cost(rows)
    if by_clock := hours_rows(answer):
        planned, spent = (duration(3600 * float(told)) for told in by_clock[-1][1:3])
        found.append(("time", spent, f"{planned} planned"))
    elif seconds:
        found.append(("run time", duration(seconds), "of all runs"))
    if seconds and (price := price_per_hour(answer)):
        found.append(("cost", quantity(price * seconds / 3600, 3), f"at {quantity(price, 3)} a device-hour"))
    elif flops:
        found.append(("compute", quantity(flops), "training FLOPs"))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b> <span>{escape(note)}</span></dd></div>"
        for name, value, note in found
    )
    return f'<dl class="tiles">{items}</dl>' if items else ""


def warnings(texts: Sequence[str]) -> str:
    """The first of the warnings as HTML, the others folded."""
    items = [f"<li>{escape(text)}</li>" for text in texts]
    if not items:
        return ""
    first, others = "".join(items[:MOST_WARNINGS]), items[MOST_WARNINGS:]
    count = f"{len(others)} more warning{'s' if len(others) > 1 else ''}"
    folded = f"<details><summary>{count}</summary><ul>{''.join(others)}</ul></details>" if others else ""
    title = '<p id="warnings">Read before trusting</p>'
    return f'<div class="warnings" role="group" aria-labelledby="warnings">{title}<ul>{first}</ul>{folded}</div>'


def facts(rows: Sequence[Row], answer: Answer) -> str:
    """What the finished runs cost, in one line of HTML."""
    done = table.measured(rows)
    if not done:
        return ""
    flops, seconds = total_cost(rows)
    failed = sum(row.get("status") in table.BROKEN for row in rows)
    parts = [f"{len(done)} finished runs", f"{quantity(flops)} training FLOPs"]
    if seconds:
        parts.append(f"{duration(seconds)} of run time")
    if (share := utilisation(rows)) is not None:
        parts.append(f"utilisation {percent(share)} of the device's peak")
    if failed:
        parts.append(f"{failed} failed or diverged and left out of the fits")
    parts += savings(rows).sentences()
    parts += [told] if (told := limit_sentence(answer)) else []
    naive = answer.get("naive_best")
    if naive and table.finite(answer.get("naive_budget")):
        parts.append(
            f"simply the lowest {metric_of(answer).short} at {quantity(answer['naive_budget'])} FLOPs: {naive}"
        )
    return f'<p class="facts">{escape(" · ".join(parts))}</p>'


def _reproduce(rows: Sequence[Row], answer: Answer) -> str:
    study = answer.get("study") or {}
    told = [(name, study[name]) for name in ("version", "created", "machine") if study.get(name)]
    if table.finite(study.get("seconds")) and not hours_rows(answer):  # which have the whole study's time
        told.append(("wall time", duration(study["seconds"])))
    seeds = sorted({str(row["seed"]) for row in rows if row.get("seed") is not None})
    if seeds:
        told.append(("seeds", ", ".join(seeds[:12]) + (" …" if len(seeds) > 12 else "")))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_flat(value))}</dd>" for name, value in told)
    command = f"<pre><code>{escape(study['command'])}</code></pre>" if study.get("command") else ""
    config = study.get("config")
    text = "\n".join(_lines(config)) if isinstance(config, Mapping) else str(config or "")
    shown = f"<details><summary>Configuration</summary><pre><code>{escape(text)}</code></pre></details>" if text else ""
    return f"{command}<dl>{items}</dl>{shown}" if command or shown else ""


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _lines(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key} = {value!r}")
    return lines
