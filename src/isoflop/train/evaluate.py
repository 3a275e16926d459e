"""Held-out evaluation: means over samples that training never sees."""

from __future__ import annotations

import numpy as np
import torch

from isoflop.data import Source
from isoflop.objectives import Objective
from isoflop.train.device import Precision, to_unit_range
from isoflop.train.step import sample_uniforms


@torch.no_grad()
def evaluate(
    objective: Objective,
    source: Source,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """The mean over `source` of what `objective.evaluate` sums: `heldout_loss` (nats) and `heldout_accuracy`."""
    was_training = objective.training
    objective.eval()
    sums: dict[str, float] = {}
    try:
        for start in range(0, len(source), batch_size):
            indices = np.arange(start, min(start + batch_size, len(source)), dtype=np.int64)
            images, labels = source.read(indices)
            with precision.autocast(device):
                noise = sample_uniforms(0, 0, indices, device)  # the same at every evaluation of every run
                totals = objective.evaluate(to_unit_range(images, source, device), labels.to(device), noise)
            for name, total in totals.items():
                sums[name] = sums.get(name, 0.0) + total.item()
    finally:
        objective.train(was_training)
    return {f"heldout_{name}": total / len(source) for name, total in sums.items()}
