"""Held-out evaluation: means over samples that training never sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from isoflop.data import Source
from isoflop.objectives import Objective
from isoflop.train.device import Precision, to_unit_range
from isoflop.train.ranks import Ranks
from isoflop.train.step import sample_uniforms


@torch.no_grad()
def evaluate(
    objective: Objective,
    source: Source,
    *,
    batch_size: int,
    ranks: Ranks,
    precision: Precision,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The mean over `source` of what `objective.evaluate` sums: `heldout_loss` (nats) and `heldout_accuracy`.

    The batches are dealt to the ranks; they are the same for any number of ranks, and each counts once. `beat` is
    called after each.
    """
    was_training = objective.training
    objective.eval()
    sums: dict[str, torch.Tensor] = {}
    starts = range(0, len(source), batch_size)
    try:
        for first in range(0, len(starts), ranks.world):
            # Where sharded, all ranks must look at something: one without a batch repeats the first, for nothing.
            mine = first + ranks.rank
            start = starts[mine if mine < len(starts) else 0]
            indices = np.arange(start, min(start + batch_size, len(source)), dtype=np.int64)
            images, labels = source.read(indices)
            with precision.autocast(ranks.device):
                noise = sample_uniforms(0, 0, indices, ranks.device)  # the same at every evaluation of every run
                totals = objective.evaluate(to_unit_range(images, source, ranks.device), labels.to(ranks.device), noise)
            for name, total in totals.items():
                counted = total.double() if mine < len(starts) else torch.zeros_like(total).double()
                sums[name] = sums[name] + counted if name in sums else counted
            beat()
    finally:
        objective.train(was_training)
    return {f"heldout_{name}": ranks.sum(total).item() / len(source) for name, total in sums.items()}
