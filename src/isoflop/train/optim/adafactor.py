"""Adafactor as the ViT-G paper changed it: the memory of half a copy of the weights, with the results of Adam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import CheckpointError
from isoflop.train.optim.sharded import EachParameter, complete, laid_out_like
from isoflop.train.shards import whole

SMALLEST_FACTORED = 32  # a matrix with a shorter side keeps its second moment whole
EPS = 1e-30  # added to squared gradients
MOMENTUM = torch.bfloat16  # what the first moment is kept in
DECAY_POWER = 0.8  # β2 of step t is 1 - t^-0.8 (arXiv 1804.04235, section 7.2)


class Adafactor(EachParameter):
    """Adafactor of arXiv 2106.04560, section 3.4: state of 0.5 × the memory of float32 weights.

    The second moment of a matrix is the outer product of its means over rows and columns (of a convolution, over its
    two longest axes; of the projections of attention, head by head, as in the authors' code: groups say so by
    `factored_as`); the first is kept in bfloat16 and applied in float32. β2 grows as 1 - t^-0.8, up to `beta2_cap`.
    Updates are neither clipped nor scaled by the size of the weights. Weight decay is times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        beta2_cap: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "beta2_cap": beta2_cap, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "factored_as": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for slots in self.state.values():  # loading gives every slot the type of its weight
            slots["momentum"] = slots["momentum"].to(MOMENTUM)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        slots = self.state[parameter]
        gradient = parameter.grad if parameter.grad.dtype == torch.float64 else parameter.grad.float()
        if "step" not in slots:
            slots["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            slots["momentum"] = torch.zeros_like(parameter, dtype=MOMENTUM)
        slots["step"] += 1
        beta2 = min(group["beta2_cap"], 1.0 - slots["step"].item() ** -DECAY_POWER)
        shape = group["factored_as"]
        if shape is None:
            scaled = _divided_by_rms(gradient, slots, beta2)
        else:  # a head may lie on several ranks
            scaled = _divided_by_rms(whole(gradient).reshape(shape), slots, beta2)
            scaled = laid_out_like(scaled.reshape(gradient.shape), gradient)
        moment = scaled.lerp_(slots["momentum"].to(scaled.dtype), group["momentum"])
        slots["momentum"].copy_(moment)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(moment.to(parameter.dtype), alpha=-group["lr"])


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The two longest axes of a shape, the shorter first; None if one is below 32, so that nothing is factored."""
    if len(shape) < 2:
        return None
    *_, short, long = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (short, long) if shape[short] >= SMALLEST_FACTORED else None


def _divided_by_rms(gradient: Tensor, slots: dict[str, Tensor], beta2: float) -> Tensor:
    """The gradient over the root of its second moment, which is brought up to date in `slots`."""
    square = gradient.square().add_(EPS)
    axes = factored_axes(gradient.shape)
    if axes is None:
        return gradient * _averaged(slots, "second", square, beta2).rsqrt()
    short, long = axes
    rows = _averaged(slots, "second_rows", square.mean(dim=long, keepdim=True), beta2)
    columns = _averaged(slots, "second_columns", square.mean(dim=short, keepdim=True), beta2)
    return gradient * (rows / complete(rows.mean(dim=short, keepdim=True))).rsqrt() * columns.rsqrt()


def _averaged(slots: dict[str, Tensor], name: str, value: Tensor, beta: float) -> Tensor:
    value = complete(value)
    if name not in slots:
        slots[name] = value.clone()  # β2 is 0 at the first step
    elif slots[name].shape != value.shape:
        raise CheckpointError(
            f"the checkpoint has second moments of shape {tuple(slots[name].shape)} where this version of isoflop has "
            f"{tuple(value.shape)}: it factors attention head by head; start the run anew"
        )
    else:
        slots[name] = laid_out_like(slots[name], value).lerp_(value, 1.0 - beta)
    return slots[name]
