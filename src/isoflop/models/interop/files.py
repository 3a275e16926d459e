"""Weight files, read without running any code that is in them."""

from __future__ import annotations

import argparse
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

from isoflop.errors import ModelError

WRAPPERS = ("state_dict", "model", "teacher", "network")  # where training scripts put the weights


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, a `.npz` of arrays, or a file of `torch.save` that holds tensors alone.

    A pickle is read by PyTorch's restricted reader, which builds tensors and containers and calls nothing else.
    Raises ModelError for what is no such file, is damaged, or holds more than that.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
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
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path}: not readable as weights: {(' '.join(str(error).split()) or repr(error))[:200]}"
        ) from error
    return _unwrapped(state, path)


def _arrays(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ModelError(
                f"{path}: not an archive of arrays; a pickle under this suffix (as DeepMind's NFNets are) could run "
                "code when it is read, and is refused"
            )
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
    return tensors
