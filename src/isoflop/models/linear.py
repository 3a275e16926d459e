"""Linear maps on the last axis, through oneDNN's matrix product where that is the faster one on a CPU.

PyTorch hands float32 products to MKL, which on tall, narrow ones (a map of many cells and few channels) reaches half of
oneDNN's speed, and on the rest 5 to 10 % less. The gradient of the weights stays with MKL, which is faster at that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this many multiply-adds the detour through Python costs more than it saves.
WORTHWHILE = 1 << 24


class _Linear(torch.autograd.Function):
    """x·wᵀ + b for a matrix x (rows, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _product(grad, weight.t(), None) if for_x else None,
            grad.t() @ x if for_weight else None,
            grad.sum(dim=0) if ctx.biased and for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·wᵀ + b over the last axis of x, as `torch.nn.functional.linear`."""
    if not _detour(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def _detour(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: an exported graph must not depend on the size of its example
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= WORTHWHILE
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
