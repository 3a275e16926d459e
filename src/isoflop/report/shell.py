"""One HTML file that needs nothing else: styles, scripts and data are inside, and its policy allows nothing outside.

The Content-Security-Policy names each script and style by its SHA-256, so text that slips into the page as markup
still runs nothing and asks for nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from isoflop.report.figure import Figure
from isoflop.report.text import escape, script_json
from isoflop.report.theme import DARK, FONT, LIGHT, css_variables
from isoflop.report.to_plotly import to_plotly

# plotly.js makes empty <style> elements and fills them rule by rule.
_EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"


@cache
def asset(name: str) -> str:
    """The text of a file beside this module."""
    return files("isoflop.report").joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str, figures: Sequence[Figure], *, script: str = "", connect: str = "'none'") -> str:
    """A whole page: `body` is HTML, `figures` are drawn into its `figure_slot`s.

    `script` is one more script (trusted, ours) after the page's own; `connect` what the page may fetch.
    """
    styles = [_style(), asset("assets/page.css")]
    scripts = [asset("vendor/plotly-cartesian.min.js"), asset("assets/page.js"), *([script] if script else [])]
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)} {_EMPTY}; "
        # plotly.js writes style attributes; with nothing to load, they cannot fetch.
        "style-src-attr 'unsafe-inline'; "
        f"img-src data: blob:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n',
            f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n',
            *(f"<style>{style}</style>\n" for style in styles),
            f"</head>\n<body>\n{body}\n",
            f'<script type="application/json" id="page-data">{script_json(payload(figures))}</script>\n',
            *(f"<script>{text}</script>\n" for text in scripts),
            "</body>\n</html>\n",
        ]
    )


def payload(figures: Sequence[Figure]) -> dict[str, Any]:
    """What the page's script draws: the themes and, by key, the figures that have something to show."""
    drawn = {figure.key: to_plotly(figure) for figure in figures if figure.panels}
    return {"themes": {"light": LIGHT, "dark": DARK}, "font": FONT, "figures": drawn}


def figure_slot(figure: Figure, position: int) -> str:
    """The place of a figure: its number, title, description and caption, or the reason why there is none."""
    heading = (
        f'<h2 id="{escape(figure.key)}-title"><span class="count">Figure {position}</span> {escape(figure.title)}</h2>'
    )
    empty, drawn = ("", " hidden") if figure.panels else (" hidden", "")
    return (
        f'<section id="{escape(figure.key)}" data-slot>{heading}<p class="empty"{drawn}>{escape(figure.empty)}</p>'
        f'<figure{empty}><div class="plot h{figure.height}" data-figure="{escape(figure.key)}" role="img" '
        f'aria-label="{escape(figure.alt)}"></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption>"
        f'<details class="data"><summary>Data of this figure</summary><div class="scroll"></div></details>'
        "</figure></section>"
    )


def _style() -> str:
    return (
        f":root{{{css_variables(LIGHT)}--font:{FONT}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{css_variables(DARK)}}}}}"
    )


def _hashes(texts: Sequence[str]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)
