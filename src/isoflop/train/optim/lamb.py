"""LAMB: Adam whose step is as long as the weights it changes allow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isoflop.train.optim.sharded import EachParameter, norm


class Lamb(EachParameter):
    """LAMB (arXiv 1904.00962, algorithm 2): Adam's direction, and each matrix moves by lr × its own norm.

    Groups with `is_vector` take Adam's step as it is, as in the authors' code (biases and norms are left out of the
    adaptation). Differs from timm's in that the step is part of each parameter's state, so that a resumed run goes on.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "is_vector": False}
        )

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        slots, gradient = self.state[parameter], parameter.grad
        beta1, beta2 = group["betas"]
        if "step" not in slots:
            slots["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            slots["exp_avg"] = torch.zeros_like(parameter)
            slots["exp_avg_sq"] = torch.zeros_like(parameter)
        slots["step"] += 1
        step = slots["step"].item()
        first = slots["exp_avg"].lerp_(gradient, 1 - beta1)
        second = slots["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (first / (1 - beta1**step)).div_((second / (1 - beta2**step)).sqrt_().add_(group["eps"]))
        update.add_(parameter, alpha=group["weight_decay"])
        if not group["is_vector"]:
            weight, length = norm(parameter), norm(update)
            is_both = (weight > 0) & (length > 0)
            update.mul_(torch.where(is_both, weight / length, torch.ones_like(weight)))
        parameter.add_(update, alpha=-group["lr"])
