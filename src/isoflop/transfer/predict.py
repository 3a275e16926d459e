"""Predictions of a trained classifier for image files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.config.load import nearest_path
from isoflop.data.decode import DamagedImage
from isoflop.data.records import Damage, Labels, are_numbers, read_image_file, renumbered, why
from isoflop.data.sources.folder import images_below
from isoflop.data.transforms import evaluation_view
from isoflop.errors import CheckpointError, DataError, ModelError
from isoflop.train.device import choose_device, normalize, to_device
from isoflop.train.identity import read_facts
from isoflop.transfer.backbones import Pretrained, open_backbone
from isoflop.transfer.metrics import LEVEL, accuracy_interval, is_right, summary
from isoflop.transfer.task import open_part

BATCH = 64
_WITHOUT_CLASSIFIER = {"masked": "by masking", "detect": "to detect", "segment": "to segment"}


@dataclass(frozen=True)
class Guess:
    """A class and its probability. `name` is its number where nobody knows names."""

    index: int
    name: str
    probability: float


@torch.no_grad()
def predict(
    checkpoint: str,
    images: Sequence[Path],
    *,
    top: int = 5,
    model: str | None = None,
    damaged: list[Damage] | None = None,
) -> Iterator[tuple[Path, list[Guess]]]:
    """Each image with its `top` classes, likeliest first.

    The model sees the pixels that it is evaluated on: `data.transforms.evaluation_view`.

    Args:
        checkpoint: what `open_backbone` takes, with a trained classifier.
        images: files, or folders, with the images in their subfolders.
        model: the preset whose weights a `.safetensors` file holds.
        damaged: takes the files that cannot be read or decoded, which are left out. Without it the first such file is a
            DataError.

    Raises CheckpointError for weights without a classifier, or that do not say how their images are normalised;
    DataError for a file that is not there and a folder without images, before anything is predicted.
    """
    pretrained, sigmoid = _classifier(checkpoint, model)
    net, files = pretrained.model, list(_files(images))
    if pretrained.moments is None:
        raise CheckpointError(f"{checkpoint} does not contain the mean and deviation of its images")
    height, width = net.image_size
    if height != width:
        raise ModelError(f"{checkpoint} takes images of {height}×{width} pixels; only squares are cut out of files")
    device = choose_device("auto")
    net = to_device(net, device).eval()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in pretrained.moments)
    for start in range(0, len(files), BATCH):
        some: list[Path] = []
        views: list[Tensor] = []
        for path in files[start : start + BATCH]:
            try:
                views.append(evaluation_view(read_image_file(path), height, net.in_channels))
                some.append(path)
            except (DamagedImage, OSError) as error:
                found_damaged = Damage(-1, str(path), why(error))
                if damaged is None:
                    raise DataError(found_damaged.line) from error
                damaged.append(found_damaged)
        if not some:
            continue
        pixels = torch.stack(views)
        logits = net(((pixels.float() / 255 - mean) / std).to(device)).float().cpu()
        found = (logits.sigmoid() if sigmoid else logits.softmax(dim=1)).numpy()
        for path, row in zip(some, found, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            yield path, [Guess(int(k), _name(pretrained, int(k)), float(row[k])) for k in best]


def _classifier(checkpoint: str, model: str | None) -> tuple[Pretrained, bool]:
    """The checkpoint with what its data says of classes and pixels; whether each class has a probability of its own."""
    pretrained, folder = open_backbone(checkpoint, model=model), Path(checkpoint).expanduser()
    objective: dict[str, Any] = {}
    if pretrained.moments is None and (facts := read_facts(folder)) is not None:
        objective = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("objective") or {}
        pretrained = Pretrained(
            pretrained.model,
            pretrained.name,
            pretrained.preset,
            pretrained.options,
            (facts.mean, facts.std),
            facts.class_names,
        )
    if how := _WITHOUT_CLASSIFIER.get(objective.get("name", "")):
        raise CheckpointError(f"{checkpoint} was trained {how}, it has no classifier: fine-tune it first ([start])")
    return pretrained, objective.get("loss") == "sigmoid"


def _files(images: Sequence[Path]) -> Iterator[Path]:
    for path in images:
        if path.is_dir():
            inside = images_below(path)
            if not inside:
                raise DataError(f"{path}: no images in this folder")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise DataError(f"{path}: no such file{nearest_path(path)}")


def _name(pretrained: Pretrained, index: int) -> str:
    return pretrained.class_names[index] if index < len(pretrained.class_names) else str(index)


# A classifier as it is, on test images of its own classes: ImageNet's, ImageNet-V2, ReaL, ObjectNet.


TEST_BATCH = 256


@torch.no_grad()
def own_head(pretrained: Pretrained, dataset: str, name: str | None = None) -> dict[str, Any]:
    """The row of the backbone's own classifier on the test part of `dataset`; any of several right classes counts.

    Classes are matched by name where both have names, so that the data may have fewer, or another order.
    Raises DataError for a class that the classifier does not know, and without names for another number of them.
    """
    source, model = open_part(dataset, "test", pretrained), pretrained.model
    labels, learnt = source.labels(), pretrained.class_names
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
            model(normalize(source.read(rows)[0], source, device)).float().cpu()
            for rows in np.array_split(np.arange(len(source), dtype=np.int64), -(-len(source) // TEST_BATCH))
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
