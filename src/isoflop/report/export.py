"""The figures of a report as SVG and PDF for a paper, each with its data as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import StudyError
from isoflop.report.figure import LIGHT, Figure, Panel, Series
from isoflop.report.text import log_ticks, quantity

FORMATS = ("svg", "pdf", "csv")
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "star": "*", "x": "X",
    "circle-open": "o", "diamond-open": "D",
}  # fmt: skip
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1.2, 2))}
_TICKS = (8, 5, 3)
"""Ticks that fit under a panel of one, two and three columns."""
_LEGEND = 104
"""Characters of a row of the legend, each entry's marker taken as six."""
_POINTS_A_PIXEL = 0.62
"""A screen figure is 1056 px wide; on paper it takes 17 cm."""
_STYLE: Any = {
    "font.family": "sans-serif", "font.size": 7.5, "axes.linewidth": 0.6, "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"], "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["soft"], "ytick.labelcolor": LIGHT["soft"], "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.5, "legend.frameon": False, "text.parse_math": False, "svg.hashsalt": "isoflop",
    "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip


def write_figures(figures: Sequence[Figure], folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write every figure that shows something to `folder` in each of `formats`; returns the files, in order.

    The same figures give the same bytes. Raises StudyError without matplotlib, for an unknown format, and where the
    storage refuses.
    """
    unknown = sorted(set(formats) - set(FORMATS) - {"png"})
    if unknown:
        raise StudyError(f"figures cannot be written as {', '.join(unknown)}; choose from svg, pdf, png, csv")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in (figure for figure in figures if figure.panels):
            paths = [folder / f"{figure.key}.{form}" for form in formats]
            _draw(figure, [path for path in paths if path.suffix != ".csv"])
            for path in paths:
                if path.suffix == ".csv":
                    _write_csv(figure, path)
            written += paths
    except OSError as error:
        raise StudyError(f"{folder}: cannot write here: {error.strerror}") from error
    return written


def _draw(figure: Figure, paths: Sequence[Path]) -> None:
    if not paths:
        return
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise StudyError("figures as SVG, PDF or PNG need matplotlib: pip install 'isoflop[figures]'") from error
    columns = max(1, min(figure.columns, len(figure.panels)))
    count = math.ceil(len(figure.panels) / columns)
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(6.7, figure.height / 1056 * 6.7), layout="constrained", facecolor="white")
        FigureCanvasAgg(canvas)
        axes = list(canvas.subplots(count, columns, squeeze=False, sharey=figure.share_y).flat)
        entries: dict[str, Any] = {}
        for ax, panel in zip(axes, figure.panels, strict=False):
            _panel(ax, panel, figure, entries)
        # Only now do shared axes know what all panels hold.
        for ax, panel in zip(axes, figure.panels, strict=False):
            _axes(ax, panel, figure.share_y, columns)
        for ax in axes[len(figure.panels) :]:
            ax.set_visible(False)
        if figure.legend and entries:
            canvas.legend(
                list(entries.values()),
                list(entries),
                loc="outside upper left",
                ncols=max(1, min(len(entries), 8, _LEGEND // (6 + max(map(len, entries))))),
                title=figure.legend_title or None,
                alignment="left",
                handletextpad=0.4,
                columnspacing=1.2,
            )
        # A date in the file would make every export another file.
        metadata = {"pdf": {"CreationDate": None, "Creator": "isoflop"}, "svg": {"Date": None, "Creator": "isoflop"}}
        for path in paths:
            form = path.suffix[1:]
            canvas.savefig(path, format=form, dpi=200, metadata=metadata.get(form))


def _panel(ax: Any, panel: Panel, figure: Figure, entries: dict[str, Any]) -> None:
    ax.set_axisbelow(True)
    ax.grid(visible=True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    bars = [s for s in panel.series if s.kind == "bar"]
    for axis, which in ((panel.x, "x"), (panel.y, "y")):
        if axis.scale == "log":
            getattr(ax, f"set_{which}scale")("log")
    for series in panel.series:
        handle = _bar(ax, series, panel, bars, figure.stacked) if series.kind == "bar" else _series(ax, series)
        if series.name and handle is not None:
            entries.setdefault(series.name, handle)
    if panel.title:
        ax.set_title(panel.title, loc="left", fontweight="bold", fontsize=8, color=LIGHT["ink"])


def _axes(ax: Any, panel: Panel, share_y: bool, columns: int) -> None:
    for axis, which in ((panel.x, "x"), (panel.y, "y")):
        getattr(ax, f"set_{which}label")(axis.title)
        if axis.scale == "log":
            _log_axis(ax, which, _TICKS[columns - 1] if which == "x" else 8)
        elif axis.limits is not None:
            getattr(ax, f"set_{which}lim")(*axis.limits)
            if axis.limits[0] < 0 < axis.limits[1]:
                (ax.axvline if which == "x" else ax.axhline)(0.0, color=LIGHT["muted"], lw=0.6, zorder=1)
        elif axis.scale == "linear" and max(map(abs, getattr(ax, f"get_{which}lim")())) >= 1e5:
            getattr(ax, f"{which}axis").set_major_formatter(lambda value, _: quantity(value))
    if share_y and ax.get_subplotspec().colspan.start:
        ax.set_ylabel("")


def _log_axis(ax: Any, which: str, most: int) -> None:
    axis = getattr(ax, f"{which}axis")
    low, high = getattr(ax, f"get_{which}lim")()
    ticks, texts = log_ticks(low, high, most)
    axis.set_ticks(ticks, texts)
    axis.set_ticks([], minor=True)
    getattr(ax, f"set_{which}lim")(low, high)


def _series(ax: Any, series: Series) -> Any:
    color = LIGHT[series.color]
    x = _floats(series.x)
    if series.kind == "band":
        return ax.fill_between(x, _floats(series.lower), _floats(series.upper), color=color, alpha=series.opacity, lw=0)
    y = _floats(series.y)
    if series.kind == "line":
        width = series.width * _POINTS_A_PIXEL
        (line,) = ax.plot(x, y, color=color, lw=width, ls=_DASHES[series.dash], alpha=series.opacity)
        return line
    hollow = series.symbol.endswith("-open")
    size = series.size * _POINTS_A_PIXEL * (1.0 if series.symbol != "star" else 1.3)
    (marks,) = ax.plot(
        x, y, ls="none", marker=_MARKERS[series.symbol], ms=size, color=color, alpha=series.opacity,
        mfc="none" if hollow else color, mec=color, mew=1.0 if hollow else 0.0, zorder=3 if series.opacity == 1 else 2,
    )  # fmt: skip
    if len(series.lower) == len(series.upper) == len(y):
        lower, upper = y - _floats(series.lower), _floats(series.upper) - y
        ax.errorbar(x, y, np.clip([lower, upper], 0, None), fmt="none", ecolor=color, elinewidth=0.9, capsize=2)
    return marks


def _bar(ax: Any, series: Series, panel: Panel, bars: Sequence[Series], stacked: bool) -> Any:
    horizontal = panel.y.scale == "category"
    names = (panel.y if horizontal else panel.x).categories
    labels, values = (series.y, series.x) if horizontal else (series.x, series.y)
    place = np.array([names.index(str(label)) for label in labels], float)
    heights, number = _floats(values), bars.index(series)
    width = 0.65 if stacked else 0.65 / len(bars)
    if not stacked:
        place = place + (number - (len(bars) - 1) / 2) * width
    below = np.zeros(len(heights))
    for earlier in bars[:number] if stacked else ():
        below += np.nan_to_num(_floats(earlier.x if horizontal else earlier.y))
    draw = ax.barh if horizontal else ax.bar
    color = [LIGHT[name] for name in series.colors] or LIGHT[series.color]
    handle = draw(
        place, heights, width, **{"left" if horizontal else "bottom": below}, color=color, alpha=series.opacity
    )
    if len(series.lower) == len(series.upper) == len(heights):
        error = np.clip([heights - _floats(series.lower), _floats(series.upper) - heights], 0, None)
        where = (heights, place) if horizontal else (place, heights)
        ax.errorbar(
            *where, **{"xerr" if horizontal else "yerr": error}, fmt="none", ecolor=LIGHT["ink"], capsize=2, lw=0.8
        )
    (ax.set_yticks if horizontal else ax.set_xticks)(range(len(names)), names)
    (ax.set_ylim if horizontal else ax.set_xlim)(-0.5, len(names) - 0.5)
    ax.grid(visible=False, axis="y" if horizontal else "x")
    return handle


def _floats(values: Any) -> Any:
    return np.array([np.nan if value is None else float(value) for value in values])


def _write_csv(figure: Figure, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("panel", "series", "kind", "x", "y", "lower", "upper", "note"))
        for panel in figure.panels:
            for series in panel.series:
                writer.writerows(_lines(panel, series))


def _lines(panel: Panel, series: Series) -> Iterator[list[Any]]:
    name = series.name or series.group
    for i, x in enumerate(series.x):
        y, lower, upper = (column[i] if i < len(column) else "" for column in (series.y, series.lower, series.upper))
        note = series.notes[i] if len(series.notes) == len(series.x) else ""
        cells = (panel.title, name, series.kind, x, y, lower, upper, note)
        yield [_text(cell) if isinstance(cell, str) else cell for cell in cells]


def _text(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
