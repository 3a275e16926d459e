"""Figures inside a notebook: a page of its own in a frame, so that neither touches the other's styles and scripts."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.report.figure import Figure
from isoflop.report.shell import document, figure_slot
from isoflop.report.text import escape

_ROOM = 210  # pixels around a figure, for its title, legend and caption


def inline_page(title: str, lead: str, figures: Sequence[Figure]) -> str:
    """HTML of a frame that shows a sentence and the figures; it needs no network and no extension."""
    slots = "".join(figure_slot(figure, position) for position, figure in enumerate(figures, 1))
    words = f"<p>{escape(lead)}</p>" if lead else ""
    page = document(title, f"<main>{words}{slots}</main>", figures)
    height = min(900, 60 + sum(figure.height + _ROOM for figure in figures))
    return (
        f'<iframe title="{escape(title)}" sandbox="allow-scripts" style="width:100%;height:{height}px;border:0" '
        f'srcdoc="{escape(page)}"></iframe>'
    )
