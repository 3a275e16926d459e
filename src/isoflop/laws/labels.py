"""How loss falls with the number of labelled images at equal compute, and with how many labels one family overtakes
another.

Runs of one budget on parts of the images: log loss = a − b·log u, a power law over the few octaves that were measured.
Three parts or more; the noise of a run is what they leave, together with an opinion of `NOISE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoflop.errors import LawError
from isoflop.laws.columns import JsonRecord

NOISE, NOISE_WORTH = 0.03, 4.0
"""Noise of a run (of log loss) before it is known, and how many runs that opinion is worth; the planner's belief has
the same."""
DRAWS = 20_000
REACH = 4.0
"""A crossing is looked for up to so many times the most images that were measured, and down to as few."""


@dataclass(frozen=True)
class LabelsLaw(JsonRecord):
    """log loss = `level` − `slope`·(log images − `centre`), with standard errors, noise and its degrees of freedom;
    `images` is from the fewest to the most that were measured."""

    level: float
    slope: float
    level_error: float
    slope_error: float
    centre: float
    noise: float
    freedom: float
    images: tuple[float, float]

    def predict(self, images: ArrayLike) -> NDArray[np.float64]:
        """Expected loss with so many labelled images."""
        x = np.log(np.asarray(images, dtype=np.float64)) - self.centre
        return np.asarray(np.exp(self.level - self.slope * x))

    def twice(self, level: float = 0.9) -> tuple[float, tuple[float, float]]:
        """The loss with twice the images as a share of that now, and the interval of that share."""
        from scipy.stats import t

        reach = float(t.ppf(0.5 + level / 2, self.freedom)) * self.slope_error
        return 2.0**-self.slope, (2.0 ** -(self.slope + reach), 2.0 ** -(self.slope - reach))


@dataclass(frozen=True)
class LabelsCrossover(JsonRecord):
    """With how many labelled images the family `later` overtakes `earlier`: images, interval, and the share of draws
    that cross so at all within `searched`; the others count at the end where they would. An end of the interval that is
    an end of `searched` is open."""

    earlier: str
    later: str
    images: float
    interval: tuple[float, float]
    probability: float
    searched: tuple[float, float]


def fit_labels(images: Sequence[float], loss: Sequence[float]) -> LabelsLaw:
    """The law of runs with so many labelled images at equal compute; LawError for fewer than three numbers of them."""
    u, z = np.log(np.asarray(images, dtype=np.float64)), np.log(np.asarray(loss, dtype=np.float64))
    if len(np.unique(u)) < 3:
        raise LawError(f"a law of labels needs three numbers of images, and these runs have {len(np.unique(u))}")
    centre = float(u.mean())
    x = u - centre
    slope, level = np.polyfit(x, z, 1)
    left = float(np.sum((z - level - slope * x) ** 2))
    freedom = len(u) - 2 + NOISE_WORTH
    noise = float(np.sqrt((left + NOISE_WORTH * NOISE**2) / freedom))
    errors = noise / np.sqrt(len(u)), noise / np.sqrt(float(np.sum(x**2)))
    ends = float(np.exp(u.min())), float(np.exp(u.max()))
    return LabelsLaw(float(level), float(-slope), errors[0], errors[1], centre, noise, freedom, ends)


def labels_crossover(
    first: str, second: str, a: LabelsLaw, b: LabelsLaw, *, level: float = 0.9, seed: int = 0
) -> LabelsCrossover | None:
    """With how many labels the one overtakes the other; None where the laws do not cross within `REACH`."""
    searched = min(a.images[0], b.images[0]) / REACH, REACH * max(a.images[1], b.images[1])
    if a.slope == b.slope:
        return None
    low, high = np.log(searched)

    def crossing(levels: NDArray[np.float64], slopes: NDArray[np.float64]) -> NDArray[np.float64]:
        """log images at which the second is as good as the first, from levels and slopes (2, …)."""
        intercepts = levels + slopes * np.array([[a.centre], [b.centre]])
        return np.asarray((intercepts[0] - intercepts[1]) / (slopes[0] - slopes[1]))

    here = float(crossing(np.array([[a.level], [b.level]]), np.array([[a.slope], [b.slope]]))[0])
    if not low < here < high:
        return None
    steeper = 1.0 if b.slope > a.slope else -1.0  # the second is the later one
    rng = np.random.default_rng(seed)
    noise = rng.standard_t(np.array([[a.freedom], [b.freedom]]), (2, 2, DRAWS))
    levels = np.array([[a.level], [b.level]]) + np.array([[a.level_error], [b.level_error]]) * noise[0]
    slopes = np.array([[a.slope], [b.slope]]) + np.array([[a.slope_error], [b.slope_error]]) * noise[1]
    at = crossing(levels, slopes)
    same = steeper * (slopes[1] - slopes[0]) > 0
    middle = np.full(DRAWS, (low + high) / 2)
    ahead = _gap(levels, slopes, (a.centre, b.centre), middle) * steeper > 0  # the later one is better all along
    at = np.where(same, np.clip(at, low, high), np.where(ahead, low, high))
    inside = (low < at) & (at < high)
    ends = np.quantile(at, [0.5 - level / 2, 0.5 + level / 2])
    earlier, later = (first, second) if steeper > 0 else (second, first)
    interval = float(np.exp(ends[0])), float(np.exp(ends[1]))
    return LabelsCrossover(earlier, later, float(np.exp(here)), interval, float(inside.mean()), searched)


def _gap(
    levels: NDArray[np.float64], slopes: NDArray[np.float64], centres: tuple[float, float], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """log loss of the first less that of the second at log images `x`."""
    first, second = (levels[k] - slopes[k] * (x - centres[k]) for k in (0, 1))
    return np.asarray(first - second)
