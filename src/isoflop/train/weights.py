"""The weights of a finished run, as files that need neither checkpoints nor ranks to be read."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from isoflop.models.saved import metadata_of
from isoflop.objectives import Objective
from isoflop.train.shards import whole


def publish_weights(objective: Objective, directory: Path, preset: str, *, is_first: bool) -> None:
    """Leaves `model.safetensors`, the backbone, in `directory`; and `objective.safetensors`, where there is more that
    learnt, a decoder say. Every rank must ask, the first writes."""
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in objective.state_dict().items():
        complete = whole(tensor)
        if is_first:
            kind = backbone if name.startswith("backbone.") else others
            kind[name.removeprefix("backbone.")] = complete.detach().to("cpu", copy=True).contiguous()
    if not is_first:
        return
    said = metadata_of(preset, objective.backbone.revision)
    _replace(directory / "model.safetensors", backbone, said)
    if others:
        _replace(directory / "objective.safetensors", others, said)


def _replace(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)
