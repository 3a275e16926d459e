"""Average precision of COCO: torchmetrics with faster-coco-eval, equal to pycocotools."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from isoflop.data.dense import DenseSource, Objects
from isoflop.data.dense.canvas import JITTERS, place
from isoflop.errors import DataError
from isoflop.objectives.dense.detector import Detector, Found
from isoflop.train.device import normalize

# What a detector finds in the images of a source, in their own pixels.


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
        found = detector.find(normalize(images, source, device))
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


MOST_COUNTED = (1, 10, 100)  # objects an image, as in COCO


def average_precision(
    pairs: Iterable[tuple[Detections, Objects]], class_names: tuple[str, ...], *, masks: bool
) -> dict[str, Any]:
    """Of images in their own pixels: `box_ap` (mean over IoU 0.5 … 0.95), `box_ap50`, `box_ap75`, `box_ap_small`,
    `box_ap_medium`, `box_ap_large`, `box_ap_classes` by name, and with `masks` the same of masks as `mask_…`.

    All in 0 … 1; None where no image has such an object. Crowds are neither found nor missed. Raises DataError
    where the extra `dense` is not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise DataError("average precision needs the extra `dense`: pip install isoflop[dense]") from error
    metrics = {}
    kinds: dict[str, Any] = {"box": "bbox"} | ({"mask": "segm"} if masks else {})
    for name, kind in kinds.items():
        metrics[name] = MeanAveragePrecision(
            iou_type=kind,
            # torchmetrics' own are rounded to 32 bits, so that an overlap of exactly 0.6 is told not to reach 0.6
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            max_detection_thresholds=list(MOST_COUNTED),
            class_metrics=True,
            backend="faster_coco_eval",
        )
        metrics[name].warn_on_many_detections = False
    for found, truth in pairs:
        for name, metric in metrics.items():
            metric.update([_prediction(found, name)], [_target(truth, name)])
    told: dict[str, Any] = {}
    for name, metric in metrics.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = metric.compute()
        for theirs, ours in (("map", ""), ("map_50", "50"), ("map_75", "75")):
            told[f"{name}_ap{ours}"] = _share(values[theirs])
        for size in ("small", "medium", "large"):
            told[f"{name}_ap_{size}"] = _share(values[f"map_{size}"])
        classes, by_class = values["classes"].reshape(-1).tolist(), values["map_per_class"].reshape(-1).tolist()
        told[f"{name}_ap_classes"] = {
            class_names[number]: _share(value) for number, value in zip(classes, by_class, strict=True)
        }
    return told


def _prediction(found: Detections, name: str) -> dict[str, torch.Tensor]:
    told = {"scores": torch.from_numpy(found.scores), "labels": torch.from_numpy(found.classes)}
    if name == "box":
        return {**told, "boxes": torch.from_numpy(found.boxes)}
    assert found.masks is not None
    return {**told, "masks": torch.from_numpy(found.masks)}


def _target(truth: Objects, name: str) -> dict[str, torch.Tensor]:
    told = {
        "labels": torch.from_numpy(truth.classes),
        "iscrowd": torch.from_numpy(truth.crowds.astype(np.int64)),
        "area": torch.from_numpy(truth.areas),
    }
    if name == "box":
        return {**told, "boxes": torch.from_numpy(truth.boxes)}
    assert truth.masks is not None
    return {**told, "masks": torch.from_numpy(truth.masks)}


def _share(value: Any) -> float | None:
    """COCO says -1 where there is nothing to find."""
    number = float(value)
    return None if number < 0 else number
