"""What our optimizers share: one parameter at a time, and sums over those that lie in pieces on several ranks
(DTensors of FSDP2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from isoflop.train.shards import is_sharded


class EachParameter(torch.optim.Optimizer):
    """An optimizer that updates each parameter by itself, from its gradient and its own state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Changes `parameter`, which has a gradient, as its `group` says."""
        raise NotImplementedError


def complete(tensor: Tensor) -> Tensor:
    """`tensor` with sums that are still spread over the ranks added up; an ordinary tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Replicate  # a second to import

    parts = cast(Any, tensor)
    placements = [Replicate() if placement.is_partial() else placement for placement in parts.placements]
    return cast(Tensor, parts.redistribute(placements=placements))


def laid_out_like(tensor: Tensor, example: Tensor) -> Tensor:
    """`tensor`, whole on every rank as a checkpoint gives it, divided among the ranks as `example` is."""
    if is_sharded(tensor) or not is_sharded(example):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = cast(Any, example).device_mesh, cast(Any, example).placements
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=placements)


def norm(tensor: Tensor) -> Tensor:
    """The norm of the whole tensor, a scalar that every rank knows."""
    return complete(torch.linalg.vector_norm(tensor))
