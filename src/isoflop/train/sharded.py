"""Checkpoints that several processes write and read together: `torch.distributed.checkpoint` over safetensors.

Every rank writes its shards into a file of its own, with their place in the whole in the file's header; any number of
ranks reads them, each what it needs. No pickle is involved. What is written is committed as any other checkpoint.
"""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from isoflop.errors import CheckpointError
from isoflop.train.state import pack


def begin_write(folder: Path, tensors: dict[str, Tensor], group: Any) -> Future[Any]:
    """Copies the shards of this rank to host memory and starts to write them into `folder`; the writing is done when
    the future is."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    started = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(started, Future)
    return started


def shard_files(folder: Path, rank: int) -> list[Path]:
    """What rank `rank` wrote into `folder`."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def read_into(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, group: Any) -> dict[str, Tensor]:
    """The tensors of the checkpoint at `path` as `pack` names them, each rank its parts, for `unpack` to put back.

    Raises CheckpointError when the checkpoint is of another model.
    """
    targets = {name: torch.empty_like(tensor) for name, tensor in pack(model, optimizer).items()}
    parameters = dict(model.named_parameters())
    found = _metadata(path)
    for name, stored in found.items():
        if name.startswith("optimizer.") and name not in targets:
            parameter = parameters.get(name.removeprefix("optimizer.").rpartition(".")[0])
            if parameter is None:
                raise CheckpointError(f"{path}: the checkpoint does not fit the model, which has no {name}")
            alike = parameter.shape == stored.size
            dtype = stored.properties.dtype
            targets[name] = torch.empty_like(parameter, dtype=dtype) if alike else torch.empty(stored.size, dtype=dtype)
    missing = sorted(targets.keys() - found.keys())
    if missing:
        raise CheckpointError(f"{path}: the checkpoint does not fit the model: it has no {missing[0]}")
    _load(path, targets, group=group)
    return targets


def read_whole(path: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint at `path`, put together in this process."""
    targets = {name: torch.empty(t.size, dtype=t.properties.dtype) for name, t in _metadata(path).items()}
    _load(path, targets)
    return targets


def _metadata(path: Path) -> dict[str, TensorStorageMetadata]:
    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {name: stored for name, stored in found.items() if isinstance(stored, TensorStorageMetadata)}


def _load(path: Path, targets: dict[str, Tensor], group: Any = None) -> None:
    reader = HuggingFaceStorageReader(str(path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(targets, storage_reader=reader, process_group=group, no_dist=group is None)
