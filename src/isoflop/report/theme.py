"""What colours mean, in light (and print) and in dark: one table, read by the page and by the static figures.

Categories take the Okabe-Ito palette (Wong, Nature Methods 8:441, 2011), which the three common kinds of colour
blindness keep apart; a family also has its own marker and dash, so that nothing rests on colour alone.
Ordered quantities (size, budget) take the yellow-to-blue of cividis (Nuñez et al., PLoS ONE 13(7), 2018), without the
ends that fade into a page.
"""

from __future__ import annotations

from isoflop.report.figure import Symbol

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


def css_variables(colors: dict[str, str]) -> str:
    """`colors` as CSS custom properties, for the inside of a rule."""
    return "".join(f"--{name}:{value};" for name, value in colors.items())
