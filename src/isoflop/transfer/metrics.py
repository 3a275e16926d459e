"""Metrics of scores and labels: top-1 and top-5, per class, calibration error, confusion.

Labels are int64 (n,), or (n, classes) of zeros and ones if several classes are correct (ReaL, ObjectNet).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

CALIBRATION_BINS = 15
MOST_CONFUSED = 100  # classes: larger tables of confusion are left out of summaries


def is_right(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Whether a right class is among the `k` best of `scores` (n, classes): bool (n,)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    if labels.ndim == 2:
        return (labels.gather(1, best) > 0).any(dim=1)
    return (best == labels[:, None]).any(dim=1)


def confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """int64 (classes, classes): how often images of the class of a row were taken for that of a column."""
    classes = scores.shape[1]
    return torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes * classes).view(classes, classes)


def accuracy_per_class(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Top-1 accuracy on the images of each class; None where the test set has none."""
    table = confusion(scores, labels)
    totals = table.sum(dim=1)
    return [float(hit) / total if total else None for hit, total in zip(table.diagonal(), totals.tolist(), strict=True)]


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of `probabilities` (n, classes): the mean of |accuracy - confidence| over equally wide
    bins of confidence, weighted by their images (arXiv 1706.04599, eq. 3)."""
    confidence = probabilities.max(dim=1).values.double()
    right = is_right(probabilities, labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are open below and closed above
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(gap.abs().sum()) / len(labels)


def summary(scores: Tensor, labels: Tensor, *, calibrated: bool) -> dict[str, Any]:
    """All of the above as JSON values; `calibrated` says that the scores are logits, whose softmax means something."""
    found: dict[str, Any] = {
        "top1": float(is_right(scores, labels).double().mean()),
        "top5": float(is_right(scores, labels, 5).double().mean()) if scores.shape[1] > 5 else None,
        "calibration_error": calibration_error(scores.softmax(dim=1), labels) if calibrated else None,
        "per_class": None,
        "confusion": None,
    }
    if labels.ndim == 1:
        found["per_class"] = accuracy_per_class(scores, labels)
        if scores.shape[1] <= MOST_CONFUSED:
            found["confusion"] = confusion(scores, labels).tolist()
    return found


# Intervals of an accuracy: the test images are a sample, and so are the draws of the training images.


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
