"""Intervals of an accuracy: the test images are a sample, and so are the draws of the training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
DRAWS = 2000


def accuracy_interval(
    right: NDArray[np.bool_], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap percentile interval of the mean of `right` (seeds, images), both of them resampled.

    An image is drawn for all seeds at once, for it is as hard for each. Images that the same seeds got right are
    interchangeable, so that only their numbers are drawn: the cost does not grow with the images.

    Few seeds say little of their spread: resampling K of them underestimates it by √((K - 1)/K), so that each draw's
    distance from the mean over seeds is stretched by the inverse, and, the spread being estimated, by how much wider
    Student's t with K - 1 degrees of freedom is than the normal distribution.
    """
    seeds, images = right.shape
    patterns, counts = np.unique(right, axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(images, counts / images, size=draws) @ patterns.T.astype(np.float64) / images
    who = generator.integers(seeds, size=(draws, seeds))
    over_images = drawn.mean(axis=1)
    over_seeds = np.take_along_axis(drawn, who, axis=1).mean(axis=1) - over_images
    tail = (1 + level) / 2
    stretch = np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail) if seeds > 1 else 1.0
    low, high = np.quantile(over_images + stretch * over_seeds, [1 - tail, tail])
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
