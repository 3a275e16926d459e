"""Held-out evaluation: means over samples that training never sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from isoflop.data import Source
from isoflop.objectives import Supervised
from isoflop.train.device import Precision, to_unit_range


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Supervised,
    source: Source,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """The mean over `source` of what `objective.evaluate` sums: `heldout_loss` (nats) and `heldout_accuracy`."""
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {}
    try:
        for start in range(0, len(source), batch_size):
            indices = np.arange(start, min(start + batch_size, len(source)), dtype=np.int64)
            images, labels = source.read(indices)
            with precision.autocast(device):
                totals = objective.evaluate(model, to_unit_range(images, source, device), labels.to(device))
            for name, total in totals.items():
                sums[name] = sums.get(name, 0.0) + total.item()
    finally:
        model.train(was_training)
    return {f"heldout_{name}": total / len(source) for name, total in sums.items()}
