"""What a masked autoencoder makes of the same few held-out images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from isoflop.data import Source
from isoflop.objectives import Masked, Objective
from isoflop.runs.reconstructions import SavedReconstruction, save_reconstruction
from isoflop.train.device import Precision, to_unit_range
from isoflop.train.ranks import Ranks
from isoflop.train.step import sample_uniforms

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
            made = objective.reconstruct(to_unit_range(images, source, device), sample_uniforms(0, 0, indices, device))
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
