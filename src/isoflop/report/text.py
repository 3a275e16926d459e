"""Numbers as text, and text that is safe inside a page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

from isoflop.escapes import escaped_json, printable
from isoflop.laws.columns import tells_nothing

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def quantity(value: float | None, digits: int = 2) -> str:
    """`value` with `digits` significant digits: `320,000`, `0.0125`, `1.2×10¹²`; a dash when there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    # Rounded first, so that 9.96e5 becomes 10⁶ and not 10×10⁵.
    rounded, power_text = f"{value:.{digits - 1}e}".split("e")
    mantissa, exponent = float(rounded), int(power_text)
    value = float(f"{rounded}e{exponent}")
    if -4 < exponent < 6:
        return f"{value:,.{max(0, digits - 1 - exponent)}f}"
    power = superscript(exponent)
    shown = f"{mantissa:.0f}" if mantissa == round(mantissa) else f"{mantissa:.{digits - 1}f}"
    return power if shown == "1" else f"{shown}×{power}"


def superscript(exponent: int) -> str:
    """The power of ten with `exponent`: `10⁻³`."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: Any, digits: int = 3) -> str:
    """`value` with `digits` decimals, a true minus sign, or a dash when it is not a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


UNTOLD = "not determined by these runs"


def between(interval: Sequence[float] | None, digits: int = 3) -> str:
    """An interval of a loss as `0.812–0.934`; in words where it is no answer, a dash where there is none."""
    if interval is None:
        return "–"
    low, high = interval
    return UNTOLD if tells_nothing(low, high) else f"{number(low, digits)}–{number(high, digits)}"


def percent(share: float) -> str:
    """A share with two digits, in per cent."""
    return f"{100 * share:.2g} %"


def share_of(value: float) -> str:
    """A share in per cent with one decimal."""
    return f"{100 * value:.1f}\u00a0%"


def duration(seconds: float | None) -> str:
    """`seconds` as people say it: `0.8 s`, `45 s`, `3 min 20 s`, `2 h 05 min`, `3.1 days`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86_400:.1f} days"


def time_unit(seconds: float) -> tuple[float, str]:
    """(seconds in one, name) of the unit in which times up to `seconds` read best."""
    return next((u for u in ((1.0, "seconds"), (60.0, "minutes")) if seconds < 100 * u[0]), (3600.0, "hours"))


def escape(value: object) -> str:
    """`value` as text of an HTML element or of a quoted attribute."""
    return html.escape(printable(str(value), kept="\n\t\u00a0"), quote=True)


def script_json(value: Any) -> str:
    """`value` as JSON that may stand inside a `<script>` element, whatever strings it holds.

    HTML ends a script at `</script` and changes its mind about one at `<!--`; older JavaScript ends a line at
    U+2028 and U+2029, and half a surrogate pair is no UTF-8. All of them, `&`, and whatever else is not printable, are
    written as escapes that JSON reads back as themselves.
    """
    text = escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# Ticks of a logarithmic axis that people can read, whether it spans a quarter of a decade or ten of them.


_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))


def log_ticks(low: float, high: float, most: int = 9) -> tuple[list[float], list[str]]:
    """Positions and labels between `low` and `high` (both positive): at most `most`, so that they do not crowd.

    Whole decades first (their labels are short: two more fit), then 1-3, 1-2-5 and finer; below a third of a decade
    even steps, as on a linear axis.
    """
    span = math.log10(high / low)
    if span < 0.3:
        ticks = _even(low, high, most)
    else:
        ticks = []
        for steps in _STEPS:
            finer = _decades(low, high, steps)
            # Short labels (0.8, 1.5, 300) leave room for two more.
            room = most + 2 if all(len(_text(tick)) <= 4 for tick in finer) else most
            if len(finer) > room and ticks:
                break
            ticks = finer
        while len(ticks) > most + 2:
            ticks = ticks[::2]
    return ticks, [_text(tick) for tick in ticks]


def _decades(low: float, high: float, steps: tuple[float, ...]) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = (float(f"{step}e{power}") for power in range(first, last + 1) for step in steps)
    return [value for value in values if low <= value <= high]


def _even(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / min(4, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((s * power for s in (1, 2, 5) if s * power >= rough), 10 * power)
    first = math.ceil(low / step)
    return [float(f"{k * step:.6g}") for k in range(first, math.floor(high / step) + 1)]


def _text(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:.6g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = float(f"{value / 10.0**exponent:.6g}")
    return superscript(exponent) if mantissa == 1 else f"{mantissa:g}×{superscript(exponent)}"
