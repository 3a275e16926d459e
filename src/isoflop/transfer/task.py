"""A transfer task: labelled images for training and testing, with checks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data import Source, Split, open_source
from isoflop.data.records import are_numbers
from isoflop.errors import DataError, DataNotice
from isoflop.escapes import printable
from isoflop.transfer.backbones import Pretrained

Indices = NDArray[np.int64]
_PARTS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True)
class TransferTask:
    """Training and test images as the backbone wants them, and all training labels (n,)."""

    name: str
    train: Source
    test: Source
    labels: Tensor


def open_task(dataset: str, pretrained: Pretrained) -> TransferTask:
    """The task `dataset` (a source, as in `data.source`) at the size, channels and normalisation of the backbone.

    A class without a test image is said once. Raises DataError for images without labels or with several each, a single
    class, parts with other classes, labels outside the classes, and channels that the backbone does not take.
    """
    train, test = (open_part(dataset, part, pretrained) for part in _PARTS)
    if train.unique_images is None:
        raise DataError(f"{dataset}: generated without limit; set the number of images to train on (`images=10000`)")
    labels, test_labels = train.labels(), test.labels()
    for part, found in (("training", labels), ("test", test_labels)):
        if train.num_classes == 0 or (found.ndim == 1 and bool((found < 0).any())):
            raise DataError(f"{dataset}: its {part} images have no labels, and a transfer task needs them")
        if found.ndim == 2:
            raise DataError(f"{dataset}: its images have several classes each; transfer needs one")
        if int(found.max()) >= train.num_classes:
            raise DataError(f"{dataset}: label {int(found.max())} in the {part} part, but {train.num_classes} classes")
    unlike = train.class_names != test.class_names
    if unlike and not (are_numbers(train.class_names) and are_numbers(test.class_names)):
        raise DataError(f"{dataset}: the training and the test part have other classes, or another order of them")
    if train.num_classes < 2:
        raise DataError(f"{dataset}: only one class ({train.class_names[0]}), so there is nothing to classify")
    absent = np.setdiff1d(np.arange(train.num_classes), test_labels.numpy())
    if len(absent):
        warnings.warn(
            f"{dataset}: no test image of {len(absent)} of {train.num_classes} classes, "
            f"`{printable(train.class_names[absent[0]])}` among them: the accuracy is that on the others",
            DataNotice,
            stacklevel=1,
        )
    return TransferTask(dataset, train, test, labels)


def open_part(dataset: str, part: Split, pretrained: Pretrained) -> Source:
    """One part of `dataset` as the backbone wants it; DataError when its channels are others."""
    model = pretrained.model
    channels = model.in_channels if model.in_channels in (1, 3) else None
    source = open_source(dataset, split=part, image_size=model.image_size[0], heldout=0, channels=channels)
    if source.channels != model.in_channels:
        raise DataError(
            f"{dataset}: its images have {source.channels} channels, "
            f"{pretrained.preset} was trained on {model.in_channels}"
        )
    return source.normalized_by(pretrained.moments)


def draw_shots(labels: Tensor, num_classes: int, shots: int, seed: int) -> Indices:
    """`shots` indices of each class, drawn by `seed` alone, class by class; all indices if `shots` is 0.

    Fewer shots are a part of more. A class with fewer images gives what it has, as in the authors' code.
    """
    if shots == 0:
        return np.arange(len(labels), dtype=np.int64)
    order = np.argsort(labels.numpy(), kind="stable")
    sizes = np.bincount(labels.numpy(), minlength=num_classes)
    chosen = []
    for label, end in enumerate(np.cumsum(sizes)):
        members = order[end - sizes[label] : end]
        chosen.append(np.random.default_rng((seed, label)).permutation(members)[:shots])
    return np.concatenate(chosen).astype(np.int64)
