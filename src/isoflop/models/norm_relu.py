"""GroupNorm with ReLU behind it, as one step: what stands before every convolution of BiT.

Two detours around PyTorch's kernel for maps whose channels come last: in training, groups of a few channels take it up
to fourteen times as long as plain sums over the map; in inference, its running sums are too coarse for fifty layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Groups of fewer channels than this are slower in PyTorch's kernel than in `_Narrow`.
NARROW = 8
WIDE_RANGE = (torch.float32, torch.bfloat16)  # squares of float16 overflow


def group_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """relu(GroupNorm(x)) of a map (batch, rows, columns, width), with the fast gradient where autograd is on."""
    if not torch.is_grad_enabled():
        return _exactly(x, weight, bias, groups, eps)
    eager = x.device.type == "cpu" and x.dtype in WIDE_RANGE and not torch.compiler.is_compiling()
    if eager and x.shape[-1] // groups < NARROW:
        out: Tensor = _Narrow.apply(x, weight, bias, groups, eps)  # type: ignore[no-untyped-call]
        return out
    # In place before the axes are moved: in place on a view, autograd copies the gradient three times.
    return F.group_norm(x.movedim(-1, 1), groups, weight, bias, eps).relu_().movedim(1, -1)


def _exactly(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """With a variance from centred values, which keeps fifty layers within 1e-5 of another implementation."""
    cells = x.view(x.shape[0], -1, groups, x.shape[-1] // groups)
    centred = cells - cells.mean(dim=(1, 3), keepdim=True)
    scale = (centred.square().mean(dim=(1, 3), keepdim=True) + eps).rsqrt() * weight.view(groups, -1)
    return torch.addcmul(bias.view(groups, -1), centred, scale).relu_().view(x.shape)


class _Narrow(torch.autograd.Function):
    """relu(GroupNorm(x)) by sums over the cells of each channel, which are then added up by group.

    As PyTorch's kernel, it needs no copy of x: x̂ = (x − μ)/σ is linear in x, and so is the gradient in x and dy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        cells = x.reshape(len(x), -1, x.shape[-1])
        count = cells.shape[1] * (cells.shape[2] // groups)
        mean = _by_group(_total(cells), groups) / count  # (batch, groups, 1)
        variance = _by_group(_total(cells * cells), groups) / count - mean.square()
        rstd = variance.clamp_(min=0).add_(eps).rsqrt_()
        scale = weight.view(groups, -1) * rstd  # (batch, groups, channels of a group)
        shift = bias.view(groups, -1) - mean * scale
        out = torch.addcmul(_on_cells(shift, x), cells, _on_cells(scale, x)).relu_()
        ctx.save_for_backward(cells, out, weight, mean, rstd)
        ctx.groups, ctx.count = groups, count
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        cells, out, weight, mean, rstd = ctx.saved_tensors
        dy = torch.ops.aten.threshold_backward(grad.reshape(cells.shape), out, 0)
        product = dy * cells
        sums = _total(dy).view(len(dy), ctx.groups, -1)
        products = _total(product).view(len(dy), ctx.groups, -1)
        gain = weight.view(ctx.groups, -1)
        # dx = gain·rstd·dy + a·x + b, with a and b such that dx is free of μ and of x̂ in every group.
        total, along = (sums * gain).sum(dim=-1, keepdim=True), (products * gain).sum(dim=-1, keepdim=True)
        a = (total * mean - along) * rstd.pow(3) / ctx.count
        b = -a * mean - total * rstd / ctx.count
        a, b = _on_cells(a.expand_as(sums), cells), _on_cells(b.expand_as(sums), cells)
        dx = torch.addcmul(b, cells, a, out=product).addcmul_(dy, _on_cells(gain * rstd, cells))
        d_weight = ((products - sums * mean) * rstd).sum(dim=0).view_as(weight)
        return dx.view(grad.shape), d_weight, sums.sum(dim=0).view_as(weight), None, None


def _by_group(channels: Tensor, groups: int) -> Tensor:
    """Sums (batch, groups, 1) of (batch, width)."""
    return channels.view(len(channels), groups, -1).sum(dim=-1, keepdim=True)


def _total(cells: Tensor) -> Tensor:
    """Sums (batch, width) over the cells, of bfloat16 in float32."""
    return cells.sum(dim=1, dtype=torch.promote_types(cells.dtype, torch.float32))


def _on_cells(by_group: Tensor, cells: Tensor) -> Tensor:
    """(batch, groups, channels of a group) as (batch, 1, width), to stand beside (batch, cells, width)."""
    return by_group.reshape(len(by_group), 1, -1).to(cells.dtype)
