"""The page of an evaluation of a classifier: accuracy, classes, confusion matrix, worst mistakes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.report.figure import document, png_text, write_whole
from isoflop.report.tables import Cell, html_table
from isoflop.report.text import escape, number

LARGEST_TABLE = 40  # classes of a confusion matrix with numbers; larger ones are a picture
_CELL = 6  # pixels of that
_RIGHT, _WRONG = (0, 86, 138), (166, 61, 0)  # `accent` and `bad` of the light page


def write_evaluation(found: Mapping[str, Any], pictures: Sequence[NDArray[np.uint8]], path: Path) -> Path:
    """Write the page of an evaluation to `path` and return it. The file is complete or not there.

    `found` is `isoflop.transfer.Evaluation.document()`, `pictures` (h, w, 3) are those of its mistakes. Raises
    StudyError where the storage refuses.
    """
    title = f"{PurePath(found['checkpoint']).name or found['checkpoint']} on {found['data']}"
    sections = [_classes(found), confusion(found), _mistakes(found, pictures), _reproduce(found)]
    body = (
        '<a class="skip" href="#main">Skip to the answer</a>'
        f"<header><p class=kicker>isoflop evaluate</p><h1>{escape(title)}</h1></header>"
        f'<main id="main"><section id="answer" aria-label="The answer"><p class="answer">{escape(_sentence(found))}</p>'
        f'<p class="facts">{escape(_facts(found))}</p></section>' + "\n".join(filter(None, sections)) + "</main>"
    )
    return write_whole(path, document(f"{title} · isoflop evaluate", body, []))


def _sentence(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return (
        f"Right on {found['right']:,} of {found['images']:,} images: accuracy {number(found['accuracy'])} "
        f"({100 * found['level']:.0f} % interval {number(low)}–{number(high)})."
    )


def _facts(found: Mapping[str, Any]) -> str:
    parts = [f"{found['data']}: {found['part']}", f"mean loss {number(found['loss'])} nats"]
    parts += [f"top-5 accuracy {number(found['top5'])}"] if found["top5"] is not None else []
    calibration = found["calibration_error"]
    parts += [f"expected calibration error {number(calibration)}"] if calibration is not None else []
    if damaged := found["damaged"]:
        names = ", ".join(PurePath(one["file"]).name for one in damaged[:3]) + (", …" if len(damaged) > 3 else "")
        parts.append(f"{len(damaged):,} damaged images were left out ({names})")
    return " · ".join(parts) + ". The interval is Wilson's: what these images say of others like them."


def _classes(found: Mapping[str, Any]) -> str:
    scores = [score for score in found["classes"] if score["images"] or score["predicted"]]
    if not scores:
        return ""
    body = [
        [
            Cell(score["name"], style="wide"),
            _share(score["accuracy"]),
            Cell("–".join(map(number, score["interval"])) if score["interval"] else "–", style="number"),
            _share(score["precision"]),
            _share(score["f1"]),
            Cell(f"{score['images']:,}", score["images"]),
            Cell(f"{score['predicted']:,}", score["predicted"]),
        ]
        for score in scores
    ]
    heads = ("class", "accuracy", f"{100 * found['level']:.0f} % interval", "precision", "F1", "images", "taken for it")
    caption = (
        "Accuracy is the share of a class's images that were recognised (recall), precision the share of right answers "
        "among those that name the class. A column's head sorts by it."
    )
    absent = len(found["classes"]) - len(scores)
    caption += f" {absent:,} classes without an image are left out." if absent else ""
    table = html_table("class-table", caption, heads, body, sortable=True)
    return f'<section id="classes"><h2>Classes</h2>{table}</section>'


def _share(value: float | None) -> Cell:
    return Cell("–", style="number") if value is None else Cell(number(value), value)


def confusion(found: Mapping[str, Any]) -> str:
    """The section with the confusion matrix: numbers, or a picture of many classes, or the most frequent confusions of
    yet more; "" where there is nothing to confuse."""
    if not found.get("confusion"):
        frequent = _confusions(found)
        return f'<section id="confusion"><h2>What is confused most often</h2>{frequent}</section>' if frequent else ""
    whole = np.asarray(found["confusion"])
    kept = np.flatnonzero(whole.any(axis=0) | whole.any(axis=1))
    names = [found["classes"][k]["name"] for k in kept]
    table = whole[np.ix_(kept, kept)]
    shares = np.sqrt(table / np.maximum(table.sum(axis=1, keepdims=True), 1))
    is_picture = len(kept) > LARGEST_TABLE
    told = "Each row is a class, each column what its images were taken for; stronger colours are larger shares."
    told = f"{table.sum():,} images: {found['part']}. {told}"
    if not is_picture:
        drawn = _matrix(names, table, shares)
    else:
        colors = np.where(np.eye(len(kept), dtype=bool)[..., None], _RIGHT, _WRONG)
        pixels = (255 - shares[..., None] * (255 - colors)).astype(np.uint8).repeat(_CELL, axis=0).repeat(_CELL, axis=1)
        alt = "Confusion matrix as a picture; the most frequent confusions are listed below."
        drawn = f'<img class="map" src="data:image/png;base64,{png_text(pixels)}" alt="{alt}">'
        told += " The classes are in the order of the classifier."
    return (
        '<section id="confusion"><h2>Confusion matrix</h2>'
        f"<figure>{drawn}<figcaption>{told}</figcaption></figure>{_confusions(found) if is_picture else ''}</section>"
    )


def _matrix(names: Sequence[str], table: NDArray[np.int64], shares: NDArray[np.float64]) -> str:
    heads = "".join(f'<th scope="col" title="{escape(name)}"><span>{escape(name)}</span></th>' for name in names)
    lines = []
    for i, name in enumerate(names):
        cells = "".join(
            f'<td{" class=hit" if i == j else ""} style="--share:{shares[i, j]:.3f}">{count:,}</td>'
            if count
            else '<td style="--share:0"></td>'
            for j, count in enumerate(table[i].tolist())
        )
        lines.append(f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="confusion matrix"><table class="confusion">'
        f'<thead><tr><th class="corner" scope="col">class ↓ taken for →</th>{heads}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _confusions(found: Mapping[str, Any]) -> str:
    if not found.get("confusions"):
        return ""
    body = [[Cell(one), Cell(other), Cell(f"{count:,}", count)] for one, other, count in found["confusions"]]
    caption = "The most frequent confusions."
    return html_table("confusions-table", caption, ("class", "taken for", "images"), body)


def _mistakes(found: Mapping[str, Any], pictures: Sequence[NDArray[np.uint8]]) -> str:
    if not found["mistakes"]:
        return ""
    items = []
    for mistake, pixels in zip(found["mistakes"], pictures, strict=True):
        label, predicted = mistake["label"] or "no class", mistake["predicted"]
        alt = f"An image of {label} that was taken for {predicted}"
        items.append(
            f'<li><figure><img src="data:image/png;base64,{png_text(pixels)}" alt="{escape(alt)}">'
            f"<figcaption><b>{escape(label)}</b>, taken for <b>{escape(predicted)}</b> "
            f"({100 * mistake['probability']:.0f} %)<br><small>loss {number(mistake['loss'], 2)} · "
            f'<span title="{escape(mistake["file"])}">{escape(_last(mistake["file"]))}</span></small>'
            "</figcaption></figure></li>"
        )
    return (
        '<section id="mistakes"><h2>Worst mistakes</h2><p class="facts">The wrong answers with the highest loss, as '
        "the model sees the images. Among them are wrong labels, if the data have some.</p>"
        f'<ul class="mistakes">{"".join(items)}</ul></section>'
    )


def _last(name: str) -> str:
    """A file with its folder; other names as they are."""
    return "/".join(PurePath(name).parts[-2:])


def _reproduce(found: Mapping[str, Any]) -> str:
    part = found["part"].split(" ")[1]
    given = ["isoflop", "evaluate", found["checkpoint"], found["data"]]
    given += ["--part", part] if part in ("train", "test") else []
    command = f"<pre><code>{escape(shlex.join(given))}</code></pre>"
    return f'<section id="reproduce"><h2>How to reproduce</h2>{command}</section>'
