"""Starting a run from trained weights."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isoflop.config import StartConfig
from isoflop.errors import CheckpointError, ModelError
from isoflop.models import Backbone
from isoflop.models.interop import read_tensors
from isoflop.models.layers import resize
from isoflop.models.saved import metadata_of
from isoflop.objectives import Objective
from isoflop.runs.directory import WEIGHTS, published
from isoflop.runs.files import replacing, sha256_of
from isoflop.train.sharded import whole


def replace_head(model: Backbone, start: StartConfig) -> None:
    """Gives `model` the classifier that `start` asks for: the one of the masked autoencoders' linear probe has
    BatchNorm without affine before it (arXiv 2111.06377, appendix A.1)."""
    if start.head != "batchnorm":
        return
    if not isinstance(model.head, nn.Linear):
        raise ModelError(f"{model.preset}: `start.head` = batchnorm needs a backbone with a plain linear classifier")
    model.head = nn.Sequential(nn.BatchNorm1d(model.num_features, eps=1e-6, affine=False), model.head)


def start_from(model: Backbone, start: StartConfig) -> None:
    """Puts the trained weights that `start` names into `model`.

    A new classifier starts at zero. Position tables of another image size are resized (bicubic). Raises CheckpointError
    when the file cannot be read, or is of another architecture, with what is missing, unexpected and mis-shaped.
    """
    path = Path(start.weights).expanduser()
    found = read_tensors(published(path) if path.is_dir() else path)
    load_trunk(model, found, path, with_head=start.head == "keep")


def load_trunk(model: Backbone, found: dict[str, Tensor], where: Path | str, *, with_head: bool) -> None:
    """Puts the weights `found` into `model`, without the classifier's unless `with_head`; see `start_from`."""
    ours = model.state_dict()
    head = () if with_head else model.classifier()
    wanted = {name: tensor for name, tensor in ours.items() if not _below(name, head)}
    given = {name: fitted(model, name, tensor) for name, tensor in found.items() if not _below(name, head)}
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "mis-shaped": [n for n, tensor in given.items() if n in wanted and tensor.shape != wanted[n].shape],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind} ({_shortened(names)})" for kind, names in problems.items() if names)
        raise CheckpointError(f"{where}: weights of another architecture than {model.preset}: {told}")
    model.load_state_dict({**ours, **given})
    if not with_head:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if _below(name, head):
                    parameter.zero_()


def fitted(model: Backbone, name: str, tensor: Tensor) -> Tensor:
    """`tensor`, or where it is a position table of another image size, its bicubic resizing."""
    own = dict(model.named_parameters()).get(name)
    if own is None or own.shape == tensor.shape or own.ndim != 3 or tensor.ndim != 3:
        return tensor
    if not own.requires_grad:  # sines and cosines, which the new size has of its own
        return own.detach()
    prefix = 0
    if name == "model.pos_embed":  # timm's has its class tokens in front
        inside = model.model
        prefix = 0 if getattr(inside, "no_embed_class", False) else int(getattr(inside, "num_prefix_tokens", 0))
        rows, columns = inside.patch_embed.grid_size  # type: ignore[union-attr,misc]
    elif name.startswith("positions."):
        rows, columns = model.grids[int(name.removeprefix("positions."))]  # type: ignore[index]
    else:
        return tensor
    side = math.isqrt(tensor.shape[1] - prefix)
    if side * side != tensor.shape[1] - prefix or tensor.shape[2] != own.shape[2]:
        return tensor
    cells = resize(tensor[:, prefix:], (side, side), (rows, columns))
    return torch.cat([tensor[:, :prefix], cells], dim=1)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _below(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


# The weights of a finished run, as files that need neither checkpoints nor ranks to be read.


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
