"""The answer in one sentence, and the warnings that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.laws.checks import tells_nothing
from isoflop.report import rows as table
from isoflop.report.metric import metric_of
from isoflop.report.rows import Answer, Row
from isoflop.report.text import between, number, quantity


def sentence(rows: Sequence[Row], answer: Answer) -> str:
    """What to train, how sure that is, and whether it came true; what is missing where there is no answer."""
    entries = answer.get("families") or {}
    best = answer.get("best")
    entry = entries.get(best)
    if not entry:
        done = len(table.measured(rows))
        return (
            f"No answer yet: {done} of {len(rows)} runs have finished."
            if rows
            else "No answer yet: no run was planned."
        )
    so_far = "So far: with" if answer.get("interim") else "With"
    rate = f" at learning rate {quantity(entry['learning_rate'])}" if entry.get("learning_rate") else ""
    text = (
        f"{so_far} {quantity(answer.get('target_flops'))} FLOPs of training, train {_model(str(best), entry)} on "
        f"{quantity(entry.get('images'))} images{rate}: "
        f"expected {metric_of(answer).name} {number(entry.get('predicted_loss'))}{_interval(entry)}"
    )
    left_out = answer.get("left_out") or {}
    if table.finite(entry.get("p_best")) and len(entries) > 1:
        those = " that trained" if left_out else ""
        text += f", the best of {len(entries)} families{those} with probability {number(entry['p_best'], 2)}"
    text += "." + "".join(f" {family} is not compared: {why}." for family, why in left_out.items())
    run = table.final_run(rows, answer)
    loss = run["heldout_loss"] if run else (answer.get("final") or {}).get("measured_loss")
    if table.finite(loss):
        text += f" Trained, it reached {number(loss)}, {_verdict(entry, loss)}."
    return text


def _model(family: str, entry: Row) -> str:
    model = str(entry.get("model") or family)
    return model if family in model else f"{family} {model}"


def _interval(entry: Row) -> str:
    interval, level = table.interval(entry), entry.get("level")
    if interval is None:
        return ""
    shown = f"{100 * level:.0f} % interval " if table.finite(level) else "interval "
    return f" ({shown}{between(interval)})"


def _verdict(entry: Row, loss: float) -> str:
    interval = table.interval(entry)
    if interval is not None and not tells_nothing(*interval):
        if interval[0] <= loss <= interval[1]:
            return "inside the interval"
        return "below the interval" if loss < interval[0] else "above the interval"
    predicted = entry.get("predicted_loss")
    if table.finite(predicted) and predicted:
        return f"{100 * (loss / predicted - 1):+.1f} % from the prediction".replace("-", "−")
    return "with no prediction to compare it with"


def warnings(answer: Answer) -> list[str]:
    """The warnings of every family's entry and law, each with the family's name, without repeats."""
    found: list[str] = []
    for family, entry in (answer.get("families") or {}).items():
        entry = entry or {}
        sources: list[Any] = [entry, entry.get("law") or {}, entry.get("frontier") or {}]
        found += [f"{family}: {text}" for source in sources for text in source.get("warnings") or ()]
    found += [f"{family}: left out: {why}" for family, why in (answer.get("left_out") or {}).items()]
    return list(dict.fromkeys(found))


def study_name(answer: Answer) -> str:
    """The title of the study, or its name, or `study` when it has neither."""
    study = answer.get("study") or {}
    return str(study.get("title") or study.get("name") or "study")
