"""The live page: the report's own figures and tables, with the progress above them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.report import headline, tables
from isoflop.report.clean import clean_answer, clean_rows
from isoflop.report.page import facts, report_figures, warnings
from isoflop.report.rows import finite
from isoflop.report.shell import asset, document, figure_slot, payload
from isoflop.report.text import duration, escape, number, quantity
from isoflop.report.watch.state import SILENT_AFTER, Live


def page(directory: Path) -> str:
    """The page without its content, which its script fetches."""
    slots = "\n".join(figure_slot(figure, i) for i, figure in enumerate(report_figures([], {}, {}), 1))
    body = (
        '<a class="skip" href="#main">Skip to the answer</a>'
        f'<header><p class=kicker>watching · {escape(directory.name)}</p><h1 id="live-title">…</h1></header>'
        '<main id="main"><p id="live-state" role="status">connecting …</p><div id="live-progress"></div>'
        '<section id="answer" aria-label="The answer so far"><p class="answer" id="live-sentence">…</p>'
        '<div id="live-summary"></div></section><section id="running"><h2>Running now</h2>'
        f'<div id="live-running"></div></section>{slots}'
        '<section id="runs"><h2>Runs</h2><div id="live-runs"></div></section></main>'
    )
    return document(f"{directory.name} · isoflop watch", body, [], script=asset("assets/watch.js"), connect="'self'")


def snapshot(live: Live) -> dict[str, Any]:
    """What the page shows of `live` now: HTML by element id, text by element id, and the figures."""
    rows, progress = clean_rows(live.rows), live.progress()
    answer = clean_answer({"study": live.study, **live.answer})
    figures = report_figures(rows, answer, live.curves())
    name = str(live.study.get("name") or live.directory.name)
    return {
        "version": live.version,
        "title": f"{100 * progress['share']:.0f} % · {name}",
        "text": {"live-title": name, "live-sentence": headline.sentence(rows, answer)},
        "html": {
            "live-progress": _progress(progress),
            "live-summary": tables.summary(rows, answer) + warnings(answer) + facts(rows, answer),
            "live-running": _running(live),
            "live-runs": tables.runs(rows, answer)
            if rows
            else '<p class="empty">The study has not planned a run yet.</p>',
        },
        "slots": {figure.key: [figure.empty, figure.caption, figure.alt] for figure in figures},
        "figures": payload(figures)["figures"],
    }


def _progress(progress: dict[str, Any]) -> str:
    percent = 100 * progress["share"]
    counts = ", ".join(f"{count} {status}" for status, count in sorted(progress["counts"].items()))
    parts = [f"{percent:.0f} % of the compute", counts or "no runs yet"]
    parts.append(f"spent {quantity(progress['flops'])} FLOPs in {duration(progress['seconds'])} of device time")
    if progress["seconds_left"] is not None:
        most = "at most " if progress.get("at_most") else ""
        parts.append(f"{most}about {duration(progress['seconds_left'])} left")
    elif progress["over"]:
        parts.append("finished")
    bar = f'<progress max="100" value="{percent:.1f}" aria-label="share of the compute"></progress>'
    return f'{bar}<p class="facts">{escape(" · ".join(parts))}</p>'


def _running(live: Live) -> str:
    body = []
    for row in live.rows:
        if row["status"] != "running":
            continue
        steps, step = row.get("steps"), row.get("step")
        share = f"{100 * step / steps:.0f} %" if finite(step) and finite(steps) and steps else "–"
        silent = row.get("silent_seconds") or 0.0
        words = f"silent for {duration(silent)}" if silent > SILENT_AFTER else "training"
        body.append(
            [
                tables.Cell(str(row["run_id"])[:10], style="code"),
                tables.Cell(str(row.get("model", "–"))),
                tables.Cell(quantity(row.get("budget")), style="number"),
                tables.Cell(quantity(row.get("learning_rate")), style="number"),
                tables.Cell(share, style="number"),
                tables.Cell(number(row.get("train_loss")), style="number"),
                tables.Cell(duration(row.get("seconds")), style="number"),
                tables.Cell(words, style="bad" if silent > SILENT_AFTER else ""),
            ]
        )
    if not body:
        return '<p class="empty">No run is training at this moment.</p>'
    heads = ("run", "model", "budget (FLOPs)", "learning rate", "done", "training loss", "time", "")
    return tables.html_table("running-table", f"At work: {len(body)}.", heads, body)
