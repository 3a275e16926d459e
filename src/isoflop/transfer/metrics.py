"""Metrics of scores and labels: top-1 and top-5, per class, calibration error, confusion.

Labels are int64 (n,), or (n, classes) of zeros and ones if several classes are correct (ReaL, ObjectNet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    # Of equal scores, `topk` may take another one first than `argmax`, which is what an image is taken for.
    best = scores.argmax(dim=1, keepdim=True) if k == 1 else scores.topk(min(k, scores.shape[1]), dim=1).indices
    if labels.ndim == 2:
        return (labels.gather(1, best) > 0).any(dim=1)
    return (best == labels[:, None]).any(dim=1)


def confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """int64 (classes, classes): how often images of the class of a row were taken for that of a column."""
    classes = scores.shape[1]
    return torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes * classes).view(classes, classes)


def accuracy_per_class(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Top-1 accuracy on the images of each class; None where the test set has none."""
    names = tuple(map(str, range(scores.shape[1])))
    return [score.accuracy for score in class_scores(labels, scores.argmax(dim=1), names)]


@dataclass(frozen=True)
class ClassScore:
    """How well a classifier recognises one class.

    Attributes:
        images, predicted: how many are of the class, and how many are taken for it.
        accuracy: on the images of the class (recall), with Wilson's `interval`; precision: the share of right answers
            among those that name the class; f1: the harmonic mean of both. None where nothing was counted.
    """

    name: str
    images: int
    predicted: int
    accuracy: float | None
    interval: tuple[float, float] | None
    precision: float | None
    f1: float | None


def class_scores(labels: Tensor, guesses: Tensor, names: Sequence[str]) -> list[ClassScore]:
    """The score of each class, of class numbers (n,), or of zeros and ones (n, classes) where they have several."""
    if labels.ndim == 2:
        counts = [labels > 0, guesses > 0, (labels > 0) & (guesses > 0)]
        images, predicted, hits = (which.sum(dim=0).tolist() for which in counts)
    else:
        chosen = [labels, guesses, labels[labels == guesses]]
        images, predicted, hits = (torch.bincount(which, minlength=len(names)).tolist() for which in chosen)
    return [
        ClassScore(
            name,
            own,
            told,
            hit / own if own else None,
            wilson_interval(hit, own) if own else None,
            hit / told if told else None,
            2 * hit / (own + told) if own + told else None,
        )
        for name, own, told, hit in zip(names, images, predicted, hits, strict=True)
    ]


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


def wilson_interval(right: int, images: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share: the chances of being right that `right` of `images` do not contradict.

    (E. B. Wilson, JASA 22, 1927.) Unlike the usual interval it holds with few images, and near 0 and 1.
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    share, weight = right / images, z * z / images
    middle = (share + weight / 2) / (1 + weight)
    half = z * float(np.sqrt(share * (1 - share) / images + weight / (4 * images))) / (1 + weight)
    return (0.0 if right == 0 else middle - half), (1.0 if right == images else middle + half)


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
