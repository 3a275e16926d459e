"""The weights of a finished run, as files that need neither checkpoints nor ranks to be read."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from isoflop.objectives import Objective
from isoflop.train.shards import whole


def publish_weights(objective: Objective, directory: Path, preset: str, *, is_first: bool) -> None:
    """Leaves `model.safetensors`, the backbone, in `directory`; and `objective.safetensors`, where there is more that
    learnt, a decoder say. Every rank must ask, the first writes."""
    weights = {name: _on_host(tensor) for name, tensor in objective.backbone.state_dict().items()}
    others = {name: tensor for name, tensor in objective.state_dict().items() if not name.startswith("backbone.")}
    learnt_with = {name: _on_host(tensor) for name, tensor in others.items()}
    if not is_first:
        return
    _replace(directory / "model.safetensors", weights, preset)
    if learnt_with:
        _replace(directory / "objective.safetensors", learnt_with, preset)


def _on_host(tensor: Tensor) -> Tensor:
    return whole(tensor).detach().to("cpu", copy=True).contiguous()


def _replace(path: Path, tensors: dict[str, Tensor], preset: str) -> None:
    partial = path.with_name(f".{path.name}")
    save_file(tensors, partial, metadata={"isoflop": preset})
    partial.replace(path)
