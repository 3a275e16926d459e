"""What a detector finds in the images of a source, in their own pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from isoflop.data.dense import DenseSource
from isoflop.data.dense.canvas import JITTERS, place
from isoflop.objectives.dense.detector import Detector, Found
from isoflop.train.device import to_unit_range


@dataclass(frozen=True)
class Detections:
    """n objects found: boxes float32 (n, 4), classes int64 (n,), scores float32 (n,), masks bool (n, height, width)."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_] | None = None


@torch.no_grad()
def detect(detector: Detector, source: DenseSource, *, device: torch.device, batch_size: int) -> Iterator[Detections]:
    """What is found in each image of `source`, in order."""
    detector.eval()
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, min(start + batch_size, len(source)), dtype=np.int64)
        images, _ = source.read(indices)
        found = detector.find(to_unit_range(images, source, device))
        for index, one in zip(indices, found, strict=True):
            row = source.record(int(index))
            height, width = source.records.pixels(row).shape[:2]
            yield in_own_pixels(one, height, width, source.image_size)


def in_own_pixels(found: Found, height: int, width: int, size: int) -> Detections:
    """Objects found on a canvas of `size` pixels, as they lie in the picture (height, width) that was put on it."""
    across, down = place(height, width, size, "detect", JITTERS["none"], None).scales
    boxes = found["boxes"].cpu() / torch.tensor([across, down, across, down])
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    masks = None
    if "masks" in found:
        masks = pasted(found["masks"].cpu().float(), boxes, height, width)
    return Detections(
        boxes.float().numpy(), found["labels"].cpu().numpy(), found["scores"].cpu().float().numpy(), masks
    )


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """Which pixels (n, height, width) are objects, by probabilities (n, 28, 28) within boxes (n, 4).

    As torchvision's `paste_masks_in_image` has it above ½, but worked out inside the boxes alone.
    """
    whole = np.zeros((len(masks), height, width), bool)
    if not len(masks):
        return whole
    padded, scale = expand_masks(masks[:, None], padding=1)
    for canvas, mask, (left, top, right, bottom) in zip(
        whole, padded, expand_boxes(boxes, scale).long().tolist(), strict=True
    ):
        sides = (max(1, bottom - top + 1), max(1, right - left + 1))
        inside = (F.interpolate(mask[None], sides, mode="bilinear", align_corners=False)[0, 0] > 0.5).numpy()
        rows, columns = slice(max(0, top), top + sides[0]), slice(max(0, left), left + sides[1])
        part = canvas[rows, columns]
        part[:] = inside[rows.start - top :, columns.start - left :][: part.shape[0], : part.shape[1]]
    return whole
