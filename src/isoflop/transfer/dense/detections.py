"""What a detector finds in the images of a source, in their own pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection.roi_heads import paste_masks_in_image

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
        pasted = paste_masks_in_image(found["masks"].cpu().float()[:, None], boxes, (height, width))
        masks = (pasted[:, 0] > 0.5).numpy()
    return Detections(
        boxes.float().numpy(), found["labels"].cpu().numpy(), found["scores"].cpu().float().numpy(), masks
    )
