"""Average precision as COCO defines it: torchmetrics over faster-coco-eval, with the numbers of pycocotools."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from isoflop.data.dense import Objects
from isoflop.errors import DataError
from isoflop.transfer.dense.detections import Detections

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
