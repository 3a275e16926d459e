"""Ticks of a logarithmic axis that people can read, whether it spans a quarter of a decade or ten of them."""

from __future__ import annotations

import math

from isoflop.report.text import superscript

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
