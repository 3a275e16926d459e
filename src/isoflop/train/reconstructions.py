"""What a masked autoencoder makes of the same few held-out images, kept at every evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isoflop.data import Source
from isoflop.errors import CheckpointError
from isoflop.objectives import Masked, Objective
from isoflop.runs.files import replacing
from isoflop.train.device import Precision, to_unit_range
from isoflop.train.ranks import Ranks
from isoflop.train.step import sample_uniforms

IMAGES = 8


@dataclass(frozen=True)
class SavedReconstruction:
    """Pictures after `step` steps: uint8 (n, C, H, W), and which patches were hidden, bool (n, rows, columns).

    `is_normalised` as in `Reconstruction`: the predictions were shown with mean and deviation of the hidden pixels.
    """

    step: int
    images: Tensor
    reconstructed: Tensor
    hidden: Tensor
    is_normalised: bool


def reconstruct(
    objective: Masked, source: Source, device: torch.device, precision: Precision, count: int = IMAGES
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
    return SavedReconstruction(0, images, pixels, made.hidden.cpu(), made.is_normalised)


def save_reconstructions(
    objective: Objective, source: Source, directory: Path, step: int, ranks: Ranks, precision: Precision
) -> None:
    """Keeps in `directory`/reconstructions what `objective` makes of held-out images now; nothing if it masks none.

    All ranks take part, the first writes.
    """
    if not isinstance(objective, Masked):
        return
    made = reconstruct(objective, source, ranks.device, precision)
    if not ranks.is_first:
        return
    folder = directory / "reconstructions"
    folder.mkdir(exist_ok=True)
    tensors = {"images": made.images, "reconstructed": made.reconstructed, "hidden": made.hidden}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(folder / f"step-{step:012d}.safetensors") as partial:
        save_file(tensors, partial, metadata={"normalised": str(made.is_normalised)})


def read_reconstructions(directory: Path) -> list[SavedReconstruction]:
    """All that a run has kept, first step first. Raises CheckpointError for a damaged file."""
    found = []
    for path in sorted((directory / "reconstructions").glob("step-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
                is_normalised = file.metadata()["normalised"] == "True"
            found.append(SavedReconstruction(int(path.stem[5:]), **tensors, is_normalised=is_normalised))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not readable: {error}") from error
    return found
