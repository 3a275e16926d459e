"""A figure as plain data: panels of series on two axes, drawn by Plotly for the page and by matplotlib for papers.

Colours are names, not values (`family0`, `ramp3`, `ink`, `muted`): the theme defines them for light, dark and print.
Numbers that are not finite are gaps.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import StudyError
from isoflop.report.text import escape, log_ticks, script_json
from isoflop.runs.files import write_atomically

Values = Sequence[Any] | NDArray[Any]
"""Numbers, or names of categories."""

Kind = Literal["line", "points", "band", "bar"]
Dash = Literal["solid", "dash", "dot"]
Symbol = Literal["circle", "square", "diamond", "triangle-up", "cross", "star", "x", "circle-open", "diamond-open"]


@dataclass(frozen=True)
class Axis:
    """One axis: its title with the unit, its scale, the names of categories from first to last, limits where chosen."""

    title: str
    scale: Literal["linear", "log", "category"] = "linear"
    categories: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """One thing drawn. `line`, `points`, `bar`: y over x, with bars of error from `lower` to `upper` where given;
    bars lie where the y axis is one of categories.

    `band`: the area between `lower` and `upper` over x.
    `colors` are those of single bars, in the place of `color`.
    `name` is the legend's text (empty: no entry); series of one `group` appear and disappear together.
    `notes` says one thing about each point, shown when pointed at.
    """

    kind: Kind
    x: Values
    y: Values = ()
    lower: Values = ()
    upper: Values = ()
    name: str = ""
    group: str = ""
    color: str = "ink"
    colors: Sequence[str] = ()
    dash: Dash = "solid"
    symbol: Symbol = "circle"
    width: float = 2.0
    size: float = 7.0
    opacity: float = 1.0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes with what is drawn on them."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """A titled row (or rows) of panels. `caption` says what is seen, `alt` says it to those who cannot see it.

    A figure without panels has nothing to show, and `empty` says why; no page has it.
    """

    key: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...] = ()
    columns: int = 3
    height: int = 380
    share_y: bool = False
    empty: str = ""
    legend: bool = True
    stacked: bool = False
    legend_title: str = ""

    def __repr__(self) -> str:
        return f"Figure({self.key!r}, {self.title!r}, {len(self.panels)} panel{'s' * (len(self.panels) != 1)})"

    def _repr_html_(self) -> str:
        return inline_page(self.title, self.empty, [self])

    @staticmethod
    def missing(key: str, title: str, why: str) -> Figure:
        """The figure that has nothing to show, and says so."""
        return Figure(key=key, title=title, caption="", alt=why, empty=why)


# What colours mean, in light (and print) and in dark: one table, read by the page and by the static figures.
#
# Categories take the Okabe-Ito palette (Wong, Nature Methods 8:441, 2011), which the three common kinds of colour
# blindness keep apart; a family also has its own marker and dash, so that nothing rests on colour alone.
# Ordered quantities (size, budget) take the yellow-to-blue of cividis (Nuñez et al., PLoS ONE 13(7), 2018), without the
# ends that fade into a page.


FAMILY_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# The same hues, lifted so that each keeps 4.5:1 on the dark page.
FAMILY_COLORS_DARK = ("#4AA3DF", "#F0803C", "#2BBF95", "#DE97BE", "#F0B43C", "#7CC8F2")
FAMILY_SYMBOLS: tuple[Symbol, ...] = ("circle", "square", "triangle-up", "diamond", "cross", "x")

# Yellow is small and blue is large on either page.
RAMP = ("#cfae1b", "#b79d3a", "#9f8f4f", "#89825e", "#74766a", "#606b74", "#4b5e7c", "#345082", "#0f3f86")
RAMP_DARK = ("#f7dc4a", "#e5d066", "#d3c57d", "#c2bb90", "#b3b3a0", "#a3adb0", "#93a9c2", "#84a6d6", "#77a4ea")

LIGHT = {
    "page": "#ffffff", "panel": "#ffffff", "ink": "#1a1d21", "soft": "#4d545c", "muted": "#8a9199", "line": "#d9dde1",
    "grid": "#e9ecef", "accent": "#00568a", "good": "#00684b", "bad": "#a63d00", "wash": "#f5f7f8",
    **{f"family{i}": c for i, c in enumerate(FAMILY_COLORS)},
    **{f"ramp{i}": c for i, c in enumerate(RAMP)},
}  # fmt: skip
DARK = {
    "page": "#14171a", "panel": "#14171a", "ink": "#e8eaed", "soft": "#b3bac2", "muted": "#7f8790", "line": "#353b41",
    "grid": "#272c31", "accent": "#6cbcf0", "good": "#46cfa6", "bad": "#ff9a5c", "wash": "#1c2024",
    **{f"family{i}": c for i, c in enumerate(FAMILY_COLORS_DARK)},
    **{f"ramp{i}": c for i, c in enumerate(RAMP_DARK)},
}  # fmt: skip

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', sans-serif"


def family_color(position: int) -> str:
    """The colour name of the family at `position` in the study's order; the palette repeats after six."""
    return f"family{position % len(FAMILY_COLORS)}"


def family_symbol(position: int) -> Symbol:
    """The marker of the family at `position`."""
    return FAMILY_SYMBOLS[position % len(FAMILY_SYMBOLS)]


def ramp_color(position: int, count: int) -> str:
    """The colour name of step `position` of `count` ordered steps."""
    last = len(RAMP) - 1
    return f"ramp{last if count <= 1 else round(position * last / (count - 1))}"


def ramp_legend(names: Sequence[str], kind: Kind = "points", most: int = 6) -> tuple[Series, ...]:
    """The legend of the ordered steps of a ramp: at most so many of them, the first and the last among them.

    They are series of their own, so that the legend has their order in whatever panel a step is drawn first.
    """
    steps = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(most, len(names)))})
    gap = [math.nan]
    return tuple(Series(kind, gap, gap, name=names[i], group=names[i], color=ramp_color(i, len(names))) for i in steps)


def css_variables(colors: dict[str, str]) -> str:
    """`colors` as CSS custom properties, for the inside of a rule."""
    return "".join(f"--{name}:{value};" for name, value in colors.items())


# A `Figure` as the JSON that plotly.js draws. Colours stay names (`@family0`); the page's script looks them up.


Json = dict[str, Any]
_DASHES = {"solid": "solid", "dash": "7px,4px", "dot": "2px,3px"}
# Room between columns, for the ticks and titles of the right one, as a share of the width.
GAP = 0.1
GAP_SHARED = 0.06
# Ticks that fit under a panel of one, two and three columns, and beside one.
_ACROSS = (9, 5, 4)
_UP = 9


def to_plotly(figure: Figure) -> Json:
    """`{"data": […], "layout": {…}}` of a figure with panels."""
    data: list[Json] = []
    columns = max(1, min(figure.columns, len(figure.panels)))
    count = math.ceil(len(figure.panels) / columns)
    layout: Json = {
        "height": figure.height,
        "margin": {"l": 62, "r": 14, "t": 34, "b": 54},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "showlegend": figure.legend and any(s.name for p in figure.panels for s in p.series),
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yref": "container",
            "yanchor": "top",
            "itemsizing": "constant",
        },
        "annotations": [],
        "barmode": "stack" if figure.stacked else "group",
        "bargap": 0.35,
        # For the page's script, which sets fewer columns where there is less room.
        "meta": {
            "columns": columns,
            "panels": len(figure.panels),
            "headed": [bool(panel.title) for panel in figure.panels],
            "shared": figure.share_y,
            "names": [],
        },
    }
    if layout["showlegend"]:
        layout["meta"]["names"] = [label(s.name) for p in figure.panels for s in p.series if s.name]
        if figure.legend_title:
            layout["legend"]["title"] = {"text": label(figure.legend_title) + "  ", "side": "left"}
        layout["margin"]["t"] = 66 if any(panel.title for panel in figure.panels) else 44
    gap = GAP_SHARED if figure.share_y else GAP
    for index, panel in enumerate(figure.panels):
        suffix = "" if index == 0 else str(index + 1)
        row, column = divmod(index, columns)
        width = (1 - gap * (columns - 1)) / columns
        left = column * (width + gap)
        high = (1 - 0.16 * (count - 1)) / count
        top = 1 - row * (high + 0.16)
        layout[f"xaxis{suffix}"] = _axis(panel, "x", [left, left + width], f"y{suffix}", _ACROSS[columns - 1])
        layout[f"yaxis{suffix}"] = _axis(panel, "y", [max(0.0, top - high), top], f"x{suffix}", _UP)
        if figure.share_y and index:
            layout[f"yaxis{suffix}"]["matches"] = "y"
            if column:
                layout[f"yaxis{suffix}"].pop("title")
        if panel.title:
            layout["annotations"].append(_heading(panel.title, left, top))
        data += [trace for series in panel.series for trace in _traces(series, panel, suffix)]
    if figure.share_y:
        _share_ticks(figure, layout)
    return {"data": data, "layout": layout}


def _heading(title: str, left: float, top: float) -> Json:
    return {
        "text": f"<b>{label(title)}</b>",
        "x": left,
        "y": top,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 5,
        "showarrow": False,
        "font": {"size": 13, "color": "@ink"},
    }


def _values(panels: Iterable[Panel], which: str) -> list[float]:
    found: list[float] = []
    for panel in panels:
        for series in panel.series:
            sources = [series.x] if which == "x" else [series.y, series.lower, series.upper]
            for source in sources:
                found += [float(v) for v in source if not isinstance(v, str) and v is not None and math.isfinite(v)]
    return found


def _axis(panel: Panel, which: str, domain: list[float], anchor: str, most: int) -> Json:
    axis: Axis = panel.x if which == "x" else panel.y
    shown: Json = {
        "domain": domain,
        "anchor": anchor,
        "title": {"text": label(axis.title), "standoff": 8},
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "showline": True,
        "automargin": True,
        "exponentformat": "power",
    }
    if axis.scale == "log":
        shown |= {"type": "log"} | _log_range(_values([panel], which), most)
    elif axis.scale == "category":
        shown |= {
            "type": "category",
            "showgrid": False,
            "range": [-0.5, len(axis.categories) - 0.5],
            "categoryorder": "array",
            "categoryarray": [label(c) for c in axis.categories],
        }
    if axis.limits is not None:
        shown |= {"range": list(axis.limits), "zeroline": axis.limits[0] < 0 < axis.limits[1]}
    return shown


def _log_range(values: Sequence[float], most: int) -> Json:
    positive = [v for v in values if 1e-200 < v < 1e200]
    if not positive:
        return {"range": [0, 1]}
    low, high = math.log10(min(positive)), math.log10(max(positive))
    pad = max(0.04 * (high - low), 0.02)
    low, high = low - pad, high + pad
    ticks, texts = log_ticks(10**low, 10**high, most)
    return {
        "range": [round(low, 4), round(high, 4)],
        "tickmode": "array",
        "tickangle": 0,
        "tickvals": ticks,
        "ticktext": texts,
    }


def _share_ticks(figure: Figure, layout: Json) -> None:
    """Axes that match share one range: the first panel's must hold what all panels show."""
    if figure.panels[0].y.scale == "log":
        common = _log_range(_values(figure.panels, "y"), _UP)
        for name in [key for key in layout if key.startswith("yaxis")]:
            layout[name] |= common


def _traces(series: Series, panel: Panel, suffix: str) -> list[Json]:
    common: Json = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": bool(series.name)}
    if series.name:
        common["name"] = label(series.name)
    if series.group:
        common["legendgroup"] = label(series.group)
    color = f"@{series.color}"
    if series.kind == "band":
        edge = common | {"x": numbers(series.x), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        lower = edge | {"y": numbers(series.lower), "showlegend": False}
        fill = {"y": numbers(series.upper), "fill": "tonexty", "fillcolor": f"{color}/{series.opacity}"}
        return [lower, edge | fill]
    trace = common | {"x": numbers(series.x), "y": numbers(series.y)}
    horizontal = series.kind == "bar" and panel.y.scale == "category"
    if series.kind == "bar":
        trace |= {
            "type": "bar",
            "orientation": "h" if horizontal else "v",
            "textposition": "none",
            # The legend shows the opacity of a colour, not that of a trace.
            "marker": {"color": [f"@{c}" for c in series.colors] or f"{color}/{series.opacity}"},
        }
    elif series.kind == "line":
        line = {"color": color, "width": series.width, "dash": _DASHES[series.dash]}
        trace |= {"mode": "lines", "line": line, "opacity": series.opacity}
    else:
        marker: Json = {"color": color, "size": series.size, "symbol": series.symbol, "opacity": series.opacity}
        if series.symbol.endswith("-open"):
            marker["line"] = {"width": 1.8}
        trace |= {"mode": "markers", "marker": marker}
    if len(series.lower) == len(series.upper) == len(series.y) > 0:
        middle = series.x if horizontal else series.y
        trace["error_x" if horizontal else "error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": numbers([float(u) - float(v) for u, v in zip(series.upper, middle, strict=True)]),
            "arrayminus": numbers([float(v) - float(w) for v, w in zip(middle, series.lower, strict=True)]),
            "color": "@ink" if series.kind == "bar" else color,
            "thickness": 1.6,
            "width": 5,
        }
    return [trace | _hover(series)]


def _hover(series: Series) -> Json:
    if not series.notes:
        return {"hoverinfo": "skip"}
    text = [label(note) for note in series.notes]
    return {"text": text[0] if len(text) == 1 else text, "hovertemplate": "%{text}<extra></extra>"}


def numbers(values: Iterable[Any]) -> list[Any]:
    """Values with five significant digits (a page shows fewer); None where there is no finite number; text escaped."""
    shown: list[Any] = []
    for value in values:
        if isinstance(value, str):
            shown.append(label(value))
        elif value is None or not np.isfinite(value):
            shown.append(None)
        else:
            short = float(f"{float(value):.5g}")
            shown.append(int(short) if short.is_integer() and abs(short) < 1e15 else short)
    return shown


def label(text: object) -> str:
    """`text` for plotly.js, which reads a subset of HTML (and links) in its labels: nothing in it is markup."""
    return html.escape(str(text), quote=False)


# One HTML file that needs nothing else: styles, scripts and data are inside, and its policy allows nothing outside.
#
# The Content-Security-Policy names each script and style by its SHA-256, so text that slips into the page as markup
# still runs nothing and asks for nothing.


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
    draws = figures or script  # whoever draws nothing is spared 1.5 MB
    scripts = [*([asset("vendor/plotly-cartesian.min.js")] if draws else []), asset("assets/page.js")]
    scripts += [script] if script else []
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


def figure_slots(figures: Sequence[Figure]) -> list[str]:
    """The places of the figures that have something to show, numbered from 1."""
    return [figure_slot(figure, position) for position, figure in enumerate((f for f in figures if f.panels), 1)]


def figure_slot(figure: Figure, position: int) -> str:
    """The place of a figure: its number, title, description and caption; hidden while it has nothing to show."""
    heading = (
        f'<h2 id="{escape(figure.key)}-title"><span class="count">Figure {position}</span> {escape(figure.title)}</h2>'
    )
    return (
        f'<section id="{escape(figure.key)}" data-slot{"" if figure.panels else " hidden"}>{heading}'
        f'<figure><div class="plot h{figure.height}" data-figure="{escape(figure.key)}" role="group" '
        f'aria-label="{escape(figure.alt)}"></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption>"
        f'<details class="data"><summary>Data of this figure</summary><div class="scroll"></div></details>'
        "</figure></section>"
    )


def png_text(pixels: NDArray[np.uint8]) -> str:
    """Pixels (height, width, 3) as a PNG in base64, for a page."""
    lines = np.diff(pixels, axis=0, prepend=np.zeros_like(pixels[:1])).reshape(len(pixels), -1)  # PNG's filter 2, "up"
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    packed = zlib.compress(np.insert(lines, 0, 2, axis=1).tobytes(), 9)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    ]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def write_whole(path: Path, text: str) -> Path:
    """Write `text` to `path` so that the file is complete or not there; StudyError when the storage refuses."""
    try:
        # Text from data may hold half a surrogate pair, which no file can.
        write_atomically(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise StudyError(f"{path}: cannot write: {error.strerror}") from error
    return path


def _style() -> str:
    return (
        f":root{{{css_variables(LIGHT)}--font:{FONT}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{css_variables(DARK)}}}}}"
    )


def _hashes(texts: Sequence[str]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)


# Figures inside a notebook: a page of its own in a frame, so that neither touches the other's styles and scripts.


_ROOM = 210  # pixels around a figure, for its title, legend and caption


def inline_page(title: str, lead: str, figures: Sequence[Figure]) -> str:
    """HTML of a frame that shows a sentence and the figures; it needs no network and no extension."""
    slots = "".join(figure_slots(figures))
    words = f"<p>{escape(lead)}</p>" if lead else ""
    page = document(title, f"<main>{words}{slots}</main>", figures)
    height = min(900, 60 + sum(figure.height + _ROOM for figure in figures))
    return (
        f'<iframe title="{escape(title)}" sandbox="allow-scripts" style="width:100%;height:{height}px;border:0" '
        f'srcdoc="{escape(page)}"></iframe>'
    )
