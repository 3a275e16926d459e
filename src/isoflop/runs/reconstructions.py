"""Reconstructions of a fixed set of held-out images by a masked run, saved at every evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from isoflop.errors import CheckpointError
from isoflop.runs.files import replacing


@dataclass(frozen=True)
class SavedReconstruction:
    """Pictures after `step` steps: uint8 (n, C, H, W), and which patches were hidden, bool (n, rows, columns).

    `is_normalised` says that predictions are shown with mean and deviation of the hidden pixels, which the model did
    not know.
    """

    step: int
    images: NDArray[np.uint8]
    reconstructed: NDArray[np.uint8]
    hidden: NDArray[np.bool_]
    is_normalised: bool


def save_reconstruction(directory: Path, saved: SavedReconstruction) -> None:
    """Keeps `saved` in the run `directory`."""
    folder = directory / "reconstructions"
    folder.mkdir(exist_ok=True)
    arrays = {"images": saved.images, "reconstructed": saved.reconstructed, "hidden": saved.hidden}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(folder / f"step-{saved.step:012d}.safetensors") as partial:
        save_file(arrays, partial, metadata={"normalised": str(saved.is_normalised)})


def read_reconstructions(directory: Path) -> list[SavedReconstruction]:
    """All that a run has kept, first step first. Raises CheckpointError for a damaged file."""
    folder = directory / "reconstructions"
    found = []
    for path in sorted(folder.glob("step-*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
                is_normalised = file.metadata()["normalised"] == "True"
            found.append(SavedReconstruction(int(path.stem[5:]), **arrays, is_normalised=is_normalised))
        except (OSError, ValueError, SafetensorError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not readable: {error}") from error
    return found
