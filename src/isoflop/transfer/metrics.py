"""What is read off scores and labels: top-1 and top-5, per class, calibration error, confusion.

Labels are int64 (n,), or (n, classes) of zeros and ones where each of several classes is right (ReaL, ObjectNet).
"""

from __future__ import annotations

from typing import Any

import torch
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
