"""Weight files, read without running any code that is in them."""

from __future__ import annotations

import argparse
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isoflop.errors import CheckpointError, ModelError, stand_in

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
