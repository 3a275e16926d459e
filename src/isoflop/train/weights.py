"""The weights of a finished run, as files that need neither checkpoints nor ranks to be read."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from isoflop.models.saved import metadata_of
from isoflop.objectives import Objective
from isoflop.runs.directory import WEIGHTS
from isoflop.runs.files import replacing, sha256_of
from isoflop.train.shards import whole


def publish_weights(objective: Objective, directory: Path, preset: str, *, is_first: bool) -> dict[str, str]:
    """Leaves `model.safetensors`, the backbone, in `directory`; and `objective.safetensors`, where there is more that
    learnt, a decoder say. Every rank must ask, the first writes; returns the SHA-256 of each file, by name."""
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in objective.state_dict().items():
        complete = whole(tensor)
        if is_first:
            kind = backbone if name.startswith("backbone.") else others
            kind[name.removeprefix("backbone.")] = complete.detach().to("cpu", copy=True).contiguous()
    if not is_first:
        return {}
    said = metadata_of(preset, objective.backbone.revision)
    files = {WEIGHTS: backbone, "objective.safetensors": others}
    return {name: _replace(directory / name, tensors, said) for name, tensors in files.items() if tensors}


def _replace(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    with replacing(path) as partial:
        save_file(tensors, partial, metadata=metadata)
        return sha256_of(partial)
