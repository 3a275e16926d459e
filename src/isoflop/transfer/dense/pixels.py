"""Maps of classes of whole pictures, and how well they agree with the truth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.dense import DenseSource
from isoflop.data.dense.objects import IGNORED
from isoflop.objectives.dense.segmenter import Segmenter
from isoflop.train.device import to_unit_range

Counts = NDArray[np.int64]
_STRIDE = 2 / 3  # of a window's side: how far the next one begins (512 and 341 px in ADE20K's recipes)


@torch.no_grad()
def class_maps(segmenter: Segmenter, source: DenseSource, *, device: torch.device) -> Iterator[NDArray[np.uint8]]:
    """The class of each pixel (height, width) of each image of `source`, in order and of its own size.

    The shorter side is scaled to the size that the segmenter was trained for, and windows slide over the longer one.
    """
    segmenter.eval()
    size = source.image_size
    for index in range(len(source)):
        pixels = torch.from_numpy(source.records.pixels(source.record(index))).permute(2, 0, 1)[None]
        height, width = pixels.shape[-2:]
        scale = size / min(height, width)
        sides = (max(size, round(height * scale)), max(size, round(width * scale)))
        scaled = F.interpolate(pixels, sides, mode="bilinear", antialias=True, align_corners=False)
        logits = slide(segmenter, to_unit_range(scaled, source, device), size)
        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        yield logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def slide(segmenter: Segmenter, image: Tensor, size: int) -> Tensor:
    """Logits (1, classes, H, W) of a normalised image (1, C, H, W), averaged over all windows that see a pixel."""
    height, width = image.shape[-2:]
    total: Tensor | None = None
    seen = image.new_zeros(1, 1, height, width)
    for top in _starts(height, size):
        for left in _starts(width, size):
            part = (..., slice(top, top + size), slice(left, left + size))
            logits = segmenter.logits(image[part])
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[part] += logits
            seen[part] += 1
    assert total is not None
    return total / seen


def _starts(side: int, size: int) -> list[int]:
    """Where windows begin along one side; the last one ends with it."""
    step = max(1, int(size * _STRIDE))
    count = 1 + max(0, -(-(side - size) // step))
    return [min(k * step, side - size) for k in range(count)]


def confusion(told: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int) -> Counts:
    """How many pixels of each true class (rows) were told to be of each class (columns)."""
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * num_classes + told[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(counts: Counts, class_names: tuple[str, ...]) -> dict[str, Any]:
    """`miou`, the mean over the classes of intersection over union; `iou_classes` by name, None for a class that is
    neither there nor told; `pixel_accuracy`. Counts (classes, classes) are of all images together, as ADE20K has it."""
    right = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    shares = [float(r / u) if u else None for r, u in zip(right, union, strict=True)]
    known = [share for share in shares if share is not None]
    return {
        "miou": float(np.mean(known)) if known else None,
        "pixel_accuracy": float(right.sum() / max(1, counts.sum())),
        "iou_classes": dict(zip(class_names, shares, strict=True)),
    }
