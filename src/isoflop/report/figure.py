"""A figure as plain data: panels of series on two axes, which the page draws with Plotly and the paper with matplotlib.

Colours are names, not values (`family0`, `ramp3`, `ink`, `muted`): the theme decides what they look like in light,
dark and print. Numbers that are not finite are gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Values = Sequence[Any] | NDArray[Any]
"""Numbers, or names of categories."""

Kind = Literal["line", "points", "band", "bar", "heatmap"]
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

    `band`: the area between `lower` and `upper` over x. `heatmap`: `grid[i][j]` at (x[j], y[i]).
    `colors` are those of single bars, in the place of `color`.
    `name` is the legend's text (empty: no entry); series of one `group` appear and disappear together.
    `notes` says one thing about each point, shown when pointed at.
    """

    kind: Kind
    x: Values
    y: Values = ()
    lower: Values = ()
    upper: Values = ()
    grid: Sequence[Values] = ()
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

    A figure without panels has nothing to show, and `empty` says why.
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

    def _repr_html_(self) -> str:
        from isoflop.report.inline import inline_page  # which draws figures, and so knows this module

        return inline_page(self.title, "", [self])

    @staticmethod
    def missing(key: str, title: str, why: str) -> Figure:
        """The figure that has nothing to show, and says so."""
        return Figure(key=key, title=title, caption="", alt=why, empty=why)
