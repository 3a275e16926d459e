"""Copying of weights between another layout and our model, in both directions."""

from __future__ import annotations

import argparse
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isoflop.errors import CheckpointError, ModelError, stand_in
from isoflop.models.backbone import Backbone
from isoflop.models.interop.names import from_flax, in_files, names_in, token_names
from isoflop.models.layers import SINCOS, resize
from isoflop.models.metaformer import MetaFormer


def load_weights(
    model: Backbone, state: Mapping[str, Tensor], layout: str, *, head: bool = True, resize_mode: str = "bicubic"
) -> None:
    """Copy weights of timm's, Hugging Face's or big_vision's model of the same architecture into `model`.

    `layout` is "timm", "huggingface" or "flax" (the arrays of a `.npz` archive). Position tables of another image size
    are resized ("bicubic" or "bilinear").
    With `head=False` the classifier keeps its own weights. Raises ModelError with the lists of missing, unexpected
    and mis-shaped tensors when the weights are of another architecture; `model` is then unchanged.
    """
    loaded, problems = _collected(model, state, layout, head, resize_mode)
    if problems:
        raise ModelError(f"these weights are not of {model.preset}: {problems}")
    model.load_state_dict({**model.state_dict(), **loaded})


def misfits(model: Backbone, state: Mapping[str, Tensor], layout: str, *, head: bool = True) -> str:
    """What is missing, unexpected and mis-shaped in `state` for `model`, which may lie on the meta device, or ""."""
    return _collected(model, state, layout, head, "bicubic")[1]


def _collected(
    model: Backbone, state: Mapping[str, Tensor], layout: str, head: bool, resize_mode: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors of `state` under our names, and what does not fit, in words."""
    theirs = from_flax(state) if layout == "flax" else {in_files(name, layout): t for name, t in state.items()}
    ours = dict(model.state_dict())
    names = names_in(model, layout)
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "mis-shaped": []}
    loaded: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, parts in names.items():
        used.update(parts)
        if name.startswith("head") and not head:
            continue
        if any(part not in theirs for part in parts):
            problems["missing"] += [part for part in parts if part not in theirs]
            continue
        value = theirs[parts[0]] if len(parts) == 1 else torch.cat([theirs[part] for part in parts])
        _fit(ours[name], value, name, loaded, problems)
    for stage, table, prefixes in token_names(model, layout):
        used.update((table, *prefixes))
        is_stored = table in theirs or not _has_fixed_positions(model)
        absent = [part for part in ((table, *prefixes) if is_stored else prefixes) if part not in theirs]
        problems["missing"] += absent
        if absent:
            continue
        tokens = [theirs[part] for part in prefixes]
        if not is_stored:  # big_vision leaves out what is computed, and gives its class token no position
            loaded |= {"prefix": torch.cat(tokens, dim=1)} if tokens else {}
        elif theirs[table].shape[-1] != ours[f"positions.{stage}"].shape[-1]:
            _fit(ours[f"positions.{stage}"], theirs[table], table, loaded, problems)
        else:
            _read_tokens(model, stage, theirs[table], tokens, loaded, layout, resize_mode)
    problems["unexpected"] = [name for name in theirs if name not in used]
    return loaded, "; ".join(f"{len(found)} {kind}: {_shortened(found)}" for kind, found in problems.items() if found)


def _has_fixed_positions(model: Backbone) -> bool:
    return isinstance(model, MetaFormer) and model.config.positions in SINCOS


def to_layout(model: Backbone, layout: str) -> dict[str, Tensor]:
    """The weights of `model` under the names and shapes of timm's or Hugging Face's files.

    Linear maps stay matrices: where the other side stores a 1x1 convolution, use `shaped_like`.
    """
    if layout == "flax":
        raise ModelError("weights are written in the layouts timm and huggingface")
    state = model.state_dict()
    out: dict[str, Tensor] = {}
    for name, parts in names_in(model, layout).items():
        tensors = state[name].chunk(len(parts)) if len(parts) > 1 else (state[name],)
        out.update(zip(parts, tensors, strict=True))
    for stage, table, prefixes in token_names(model, layout):
        positions = state[f"positions.{stage}"]
        if prefixes:
            tokens = state["prefix"]
            # Their class token gets a position too; ours is the sum of both, so theirs is zero.
            positions = torch.cat([torch.zeros_like(tokens), positions], dim=1)
            out.update(zip(prefixes, tokens.split(1, dim=1), strict=True))
        out[table] = positions
    return out


def shaped_like(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each tensor in the shape of `target`'s of that name, where they differ by axes of length one."""
    return {
        name: tensor.reshape(target[name].shape)
        if name in target and _same_but_for_ones(tensor, target[name])
        else tensor
        for name, tensor in state.items()
    }


def _read_tokens(
    model: Backbone,
    stage: int,
    table: Tensor,
    prefixes: list[Tensor],
    loaded: dict[str, Tensor],
    layout: str,
    mode: str,
) -> None:
    assert isinstance(model, MetaFormer)
    count = len(prefixes)
    if count:
        loaded["prefix"] = torch.cat(prefixes, dim=1)
        if layout == "flax" and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
            count = 0  # big_vision's class token has no position
        else:
            loaded["prefix"] = loaded["prefix"] + table[:, :count]
    cells, side = table[:, count:], math.isqrt(table.shape[1] - count)
    new = model.grids[stage]
    if cells.shape[1] != new[0] * new[1]:
        if side * side != cells.shape[1]:
            raise ModelError(f"a position table of {cells.shape[1]} cells is not square: resize it before loading")
        cells = resize(cells, (side, side), new, mode)
    loaded[f"positions.{stage}"] = cells


def _fit(ours: Tensor, value: Tensor, name: str, loaded: dict[str, Tensor], problems: dict[str, list[str]]) -> None:
    if _same_but_for_ones(ours, value):
        loaded[name] = value.reshape(ours.shape)
    else:
        problems["mis-shaped"].append(f"{name} {tuple(value.shape)} for {tuple(ours.shape)}")


def _same_but_for_ones(one: Tensor, two: Tensor) -> bool:
    return [n for n in one.shape if n > 1] == [n for n in two.shape if n > 1]


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# Weight files, read without running any code that is in them.


WRAPPERS = ("state_dict", "model", "teacher", "network")  # where training scripts put the weights
# Weights hardly shrink when they are packed: what becomes more than so many times as large as its file is none of them.
_LARGEST_RATIO, _ALWAYS_ALLOWED = 20, 1 << 26  # bytes


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, a `.npz` of arrays, or a file of `torch.save` that holds tensors alone.

    A pickle is read by PyTorch's restricted reader, which builds tensors and containers and calls nothing else. Sizes
    are read before what they are of. Raises ModelError for what is no such file, is damaged, holds more than that, or
    would be far larger in memory than it is on the disk.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weight file {path}")
    try:
        with path.open("rb") as file:
            if told := stand_in(file.read(64)):
                raise ModelError(f"{path}: {told}")
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_size(path, sum(member.file_size for member in archive.infolist()))
        if path.suffix == ".npz":
            return _arrays(path)
        # The settings of a training script, without effect: MAE's and timm's checkpoints have theirs in this class.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's version
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors, which could run code when it is read: refused. Whoever trusts it can "
            "save its state_dict alone, as .safetensors"
        ) from error
    except ModelError:
        raise
    except Exception as error:  # damaged bytes make these readers raise almost anything
        raise ModelError(
            f"{path}: not readable as weights: {(' '.join(str(error).split()) or repr(error))[:200]}"
        ) from error
    return _unwrapped(state, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file; CheckpointError where it cannot be read."""
    try:
        with path.open("rb") as file:
            if told := stand_in(file.read(64)):
                raise CheckpointError(f"{path}: {told}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable as weights: {' '.join(str(error).split())}") from error


def _check_size(path: Path, needed: int) -> None:
    """Raises ModelError where the file at `path` would take far more memory than it has bytes."""
    size = path.stat().st_size
    if needed > max(_LARGEST_RATIO * size, _ALWAYS_ALLOWED):
        raise ModelError(
            f"{path}: {size / 1e6:,.1f} MB on the disk would be {needed / 1e6:,.0f} MB in memory: these are no "
            "weights, and are not read"
        )


def _arrays(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path}: not an archive of arrays; a pickle under this suffix (as DeepMind's NFNets are) could run code "
            "when it is read, and is refused"
        )
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():  # memory is taken by what an array's header says
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
            if math.prod(shape) * kind.itemsize > member.file_size:
                raise ModelError(f"{path}: the array `{member.filename}` is larger than its place in the archive")
    with np.load(path, allow_pickle=False) as found:
        return {name: torch.from_numpy(np.asarray(found[name])) for name in found.files}


def _unwrapped(state: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise ModelError(f"{path}: holds a {type(state).__name__}, not named tensors")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path}: holds no tensors")
    if any(tensor.is_meta or tensor.layout is not torch.strided for tensor in tensors.values()):
        raise ModelError(f"{path}: holds sparse tensors, or some without values")
    _check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))  # strides may be 0
    return tensors
