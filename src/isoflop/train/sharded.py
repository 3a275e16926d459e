"""Checkpoints that several processes write and read together: `torch.distributed.checkpoint` with safetensors.

Every rank writes its shards into its own file, with their position in the header. Any number of ranks can read them,
each the part that it needs. No pickle is used. A sharded checkpoint is committed like any other one.
`torch.distributed.checkpoint` takes a second to import, which only sharded runs need.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from isoflop.errors import CheckpointError
from isoflop.train.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def begin_write(folder: Path, tensors: dict[str, Tensor], group: Any) -> Future[Any]:
    """Copies the shards of this rank to host memory and starts to write them into `folder`; the writing is done when
    the future is."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    started = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(started, Future)
    return started


def shard_files(folder: Path, rank: int) -> list[Path]:
    """What rank `rank` wrote into `folder`."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def read_into(path: Path, model: nn.Module, packed: dict[str, Tensor], group: Any) -> dict[str, Tensor]:
    """The tensors of the checkpoint at `path` like the `packed` ones, each rank its parts, for `unpack`.

    Raises CheckpointError when the checkpoint is of another model.
    """
    targets = {name: torch.empty_like(tensor) for name, tensor in packed.items()}
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
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    return {name: stored for name, stored in found.items() if isinstance(stored, TensorStorageMetadata)}


def _load(path: Path, targets: dict[str, Tensor], group: Any = None) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(targets, storage_reader=reader, process_group=group, no_dist=group is None)


# Parameters of which a process keeps a part (DTensors of FSDP2), beside those it keeps whole.
#
# Gradients of the first are reduced by FSDP2 as they arise. Those of the second (all, where nothing is sharded, and
# scalars always) are summed here, in buckets of a fixed order, so that the same layout gives the same bits.


BUCKET = 1 << 24  # numbers that are summed in one go


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only a part of `tensor`."""
    return hasattr(tensor, "_local_tensor")  # isinstance would import all of torch.distributed.tensor


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process keeps; it shares its memory."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`; where it is sharded, every rank must ask."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor


def sum_whole_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Replaces the gradients of parameters that every rank keeps whole by their sums over the ranks."""
    gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    bucket: list[Tensor] = []
    for index, gradient in enumerate(gradients):
        bucket.append(gradient)
        is_last = index == len(gradients) - 1
        if is_last or sum(g.numel() for g in bucket) + gradients[index + 1].numel() > BUCKET:
            flat = ranks.sum(torch.cat([g.reshape(-1) for g in bucket]))
            for g, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                g.copy_(part.view(g.shape))
            bucket = []


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of the whole gradient, a scalar, the same on every rank."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    plain = [g for g in gradients if not is_sharded(g)]
    norm = nn.utils.get_total_norm(plain)
    if len(plain) < len(gradients):
        parts = nn.utils.get_total_norm([g for g in gradients if is_sharded(g)])
        norm = torch.linalg.vector_norm(torch.stack([norm.to(parts.device), whole(parts)]))
    return norm


def scale_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scales the gradient, whose norm is `norm`, down to the norm `limit` (as `clip_grad_norm_`)."""
    if not any(is_sharded(p) for p in parameters):
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], factor)


def unit_norms(tensors: Sequence[Tensor], are_vectors: Sequence[bool]) -> list[Tensor]:
    """The norm of each output unit of each tensor, shaped to broadcast against this process's part of it.

    A unit is an entry of the first axis, along which FSDP2 shards: it is never divided. What is said to be a vector is
    one unit as a whole, whatever its shape; the squares of those that are sharded are summed over the ranks in one go.
    """
    every = [(local(t), is_vector or t.ndim < 2) for t, is_vector in zip(tensors, are_vectors, strict=True)]
    of_vectors = iter(
        torch._foreach_norm([part for part, is_vector in every if is_vector]) if any(v for _, v in every) else ()
    )
    norms = [
        next(of_vectors) if is_vector else torch.linalg.vector_norm(part, dim=tuple(range(1, part.ndim)), keepdim=True)
        for part, is_vector in every
    ]
    parts = [index for index, tensor in enumerate(tensors) if norms[index].ndim == 0 and is_sharded(tensor)]
    if parts:
        squares = torch.stack([norms[index].square() for index in parts])
        total = _over_shards(squares, tensors[parts[0]]).sqrt()
        for index, norm in zip(parts, total.unbind(), strict=True):
            norms[index] = norm
    return norms


def _over_shards(values: Tensor, example: Tensor) -> Tensor:
    """`values` summed over the ranks among which `example` is sharded."""
    import torch.distributed as dist

    mesh, placements = cast(Any, example).device_mesh, cast(Any, example).placements
    for axis, placement in enumerate(placements):
        if placement.is_shard():
            dist.all_reduce(values, group=mesh.get_group(axis))
    return values
