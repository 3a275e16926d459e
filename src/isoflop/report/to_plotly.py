"""A `Figure` as the JSON that plotly.js draws. Colours stay names (`@family0`); the page's script looks them up."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from isoflop.report.figure import Axis, Figure, Panel, Series
from isoflop.report.ticks import log_ticks

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
    }
    if layout["showlegend"]:
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
    if series.kind == "heatmap":
        grid = [numbers(row) for row in series.grid]
        return [
            common
            | {"type": "heatmap", "x": numbers(series.x), "y": numbers(series.y), "z": grid, "colorscale": "@ramp"}
        ]
    trace = common | {"x": numbers(series.x), "y": numbers(series.y)}
    lying = series.kind == "bar" and panel.y.scale == "category"
    if series.kind == "bar":
        trace |= {
            "type": "bar",
            "orientation": "h" if lying else "v",
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
        middle = series.x if lying else series.y
        trace["error_x" if lying else "error_y"] = {
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
