"""LARS: SGD whose step is a fixed share of the weights that it changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isoflop.train.optim.sharded import EachParameter, norm

TRUST = 1e-3  # the share (arXiv 1708.03888, section 4)


class Lars(EachParameter):
    """LARS (arXiv 1708.03888) as the masked autoencoders have it (mae, util/lars.py): u = g + wd·w of a kernel is made
    as long as 0.001·‖w‖, where w and u are not 0, and goes into the momentum.

    Groups with `is_vector` are taken as they are, without weight decay if they have none.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "is_vector": False}
        super().__init__(params, defaults)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        update = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if not group["is_vector"]:
            weight, length = norm(parameter), norm(update)
            is_both = (weight > 0) & (length > 0)
            update.mul_(torch.where(is_both, TRUST * weight / length, torch.ones_like(weight)))
        if group["momentum"]:
            slots = self.state[parameter]
            if "momentum_buffer" in slots:
                update = slots["momentum_buffer"].mul_(group["momentum"]).add_(update)
            else:
                slots["momentum_buffer"] = update
        parameter.add_(update, alpha=-group["lr"])
