"""Evaluation on held-out samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from isoflop.data import Source
from isoflop.objectives import Masked, Objective
from isoflop.objectives.supervised import SCALED
from isoflop.runs.reconstructions import SavedReconstruction, save_reconstruction
from isoflop.train.device import Precision, normalize
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
    called after each. The loss of an objective that calibrates is that at the best temperature, of
    N images 1/(N + 1) at least.
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
                totals = objective.evaluate(normalize(images, source, ranks.device), labels.to(ranks.device), noise)
            for name, total in totals.items():
                counted = total.double() if mine < len(starts) else torch.zeros_like(total).double()
                sums[name] = sums[name] + counted if name in sums else counted
            beat()
    finally:
        objective.train(was_training)
    means = {name: ranks.sum(total).item() / len(source) for name, total in sums.items()}
    scaled = [means.pop(name) for name in list(means) if name.startswith(SCALED)]
    found = {f"heldout_{name}": mean for name, mean in means.items()}
    if scaled:  # N images do not tell whether one in more than N is wrong
        found["heldout_loss"] = max(min(scaled), 1 / (len(source) + 1))
    return found


# What a masked autoencoder makes of the same few held-out images.


IMAGES = 8


def reconstruct(
    objective: Masked, source: Source, device: torch.device, precision: Precision, step: int = 0, count: int = IMAGES
) -> SavedReconstruction:
    """What `objective` makes of the first `count` images of `source`, hidden as at every evaluation of every run."""
    indices = np.arange(min(count, len(source)), dtype=np.int64)
    images, _ = source.read(indices)
    was_training = objective.training
    objective.eval()
    try:
        with precision.autocast(device):
            made = objective.reconstruct(normalize(images, source, device), sample_uniforms(0, 0, indices, device))
    finally:
        objective.train(was_training)
    std, mean = (torch.tensor(x).view(1, -1, 1, 1) for x in (source.std, source.mean))
    pixels = (255 * (made.images.float().cpu() * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return SavedReconstruction(step, images.numpy(), pixels.numpy(), made.hidden.cpu().numpy(), made.is_normalised)


def save_reconstructions(
    objective: Objective, source: Source, directory: Path, step: int, ranks: Ranks, precision: Precision
) -> None:
    """Keeps in `directory`/reconstructions what `objective` makes of held-out images now; nothing if it masks none.

    All ranks take part, the first writes.
    """
    if not isinstance(objective, Masked):
        return
    made = reconstruct(objective, source, ranks.device, precision, step)
    if ranks.is_first:
        save_reconstruction(directory, made)
