"""A classifier as it is, on test images of its own classes: ImageNet's, ImageNet-V2, ReaL, ObjectNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isoflop.data import labels_of
from isoflop.data.records import Labels, are_numbers, renumbered
from isoflop.errors import CheckpointError, DataError
from isoflop.train.device import choose_device, to_device, to_unit_range
from isoflop.transfer.backbones import Pretrained
from isoflop.transfer.intervals import LEVEL, accuracy_interval
from isoflop.transfer.metrics import is_right, summary
from isoflop.transfer.task import open_part

BATCH = 256


@torch.no_grad()
def own_head(pretrained: Pretrained, dataset: str, name: str | None = None) -> dict[str, Any]:
    """The row of the backbone's own classifier on the test part of `dataset`; any of several right classes counts.

    Classes are matched by name where both have names, so that the data may have fewer, or another order.
    Raises DataError for a class that the classifier does not know, and without names for another number of them.
    """
    source, model = open_part(dataset, "test", pretrained), pretrained.model
    labels, learnt = labels_of(source), pretrained.class_names
    if learnt and not are_numbers(learnt) and source.class_names and not are_numbers(source.class_names):
        own: Labels = labels.numpy() if labels.ndim == 1 else labels.numpy().astype(np.uint8)
        known = f"of the classifier of {pretrained.name}"
        labels = torch.from_numpy(renumbered(own, source.class_names, learnt, dataset, known))
    elif source.num_classes != model.num_classes:
        raise DataError(
            f"{dataset} has {source.num_classes} classes, the classifier of {pretrained.preset} {model.num_classes}"
        )
    device = choose_device("auto")
    model = to_device(model, device).eval()
    scores = torch.cat(
        [
            model(to_unit_range(source.read(rows)[0], source, device)).float().cpu()
            for rows in np.array_split(np.arange(len(source), dtype=np.int64), -(-len(source) // BATCH))
        ]
    )
    if not bool(scores.isfinite().all()):
        raise CheckpointError(f"{pretrained.name}: its logits are not finite numbers, so it cannot be judged")
    right = is_right(scores, labels).numpy()
    found = summary(scores, labels, calibrated=True)
    return {
        "name": name or pretrained.name,
        "protocol": "head",
        "dataset": dataset,
        "shots": 0,
        "accuracy_mean": found.pop("top1"),
        "accuracy_std": None,
        "interval": list(accuracy_interval(right[None])),
        "level": LEVEL,
        "seeds": 1,
        "test_images": len(source),
        **found,
    }
