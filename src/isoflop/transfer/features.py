"""Frozen features of a backbone over a source, and the few labelled images that a protocol may see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data import Source
from isoflop.errors import DataError
from isoflop.models import Backbone
from isoflop.train.device import to_unit_range

Indices = NDArray[np.int64]


def read_all(source: Source, indices: Indices | None = None) -> tuple[Tensor, Tensor]:
    """Normalised float images (n, C, H, W) and labels (n,) of `indices`, or of the whole source."""
    chosen = np.arange(len(source), dtype=np.int64) if indices is None else indices
    images, labels = source.read(chosen)
    return to_unit_range(images, source, torch.device("cpu")), labels


@torch.no_grad()
def extract(model: Backbone, images: Tensor, batch_size: int = 256) -> Tensor:
    """Pooled features (n, D) of normalised float images (n, C, H, W), in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model.features(part).float() for part in torch.split(images, batch_size)])
    finally:
        model.train(was_training)


def draw_shots(labels: Tensor, num_classes: int, shots: int, seed: int) -> Indices:
    """`shots` indices of each class, drawn by `seed` alone, class by class; DataError names a class that has fewer."""
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels.numpy() == label)
        if len(members) < shots:
            raise DataError(
                f"class {label} has {len(members)} training images, fewer than {shots} shots: lower `shots`"
            )
        chosen.append(np.random.default_rng((seed, label)).permutation(members)[:shots])
    return np.concatenate(chosen).astype(np.int64)
