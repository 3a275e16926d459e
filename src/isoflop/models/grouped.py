"""GroupNorm for maps whose channels come last, and the pooling block that shares its statistics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.parameters import Kinds


class GroupNorm(nn.Module):
    """GroupNorm of maps (batch, rows, columns, width) or tokens (batch, tokens, width)."""

    parameter_kinds: ClassVar[Kinds] = {"weight": "gain", "bias": "bias"}

    def __init__(self, width: int, groups: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's kernel for channels-last maps is several times as fast as a composition of means and products.
        grid = x if x.ndim == 4 else x[:, :, None]
        out = F.group_norm(grid.movedim(-1, 1), self.groups, self.weight, self.bias, self.eps)
        return out.movedim(1, -1).view(x.shape)


class _PoolResidual(torch.autograd.Function):
    """x + keep·gain·σ⁻¹·(mean of the neighbours − x) with the σ of each image; see `pool_residual`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, keep: Tensor, size: int, eps: float) -> Tensor:
        batch, rows, columns, width = x.shape
        x = x.contiguous()
        # Of the norm only its statistics are wanted, but its kernel is still the fastest way to them.
        _, mean, rstd = torch.native_group_norm(x.movedim(-1, 1), None, None, batch, width, rows * columns, 1, eps)
        mean, rstd = mean.view(-1, 1, 1, 1), rstd.view(-1, 1, 1, 1)
        mixed = _averaged(x, size).sub_(x)
        ctx.save_for_backward(x, mixed, gain, keep, mean, rstd)
        ctx.size = size
        return torch.addcmul(x, mixed, gain * (rstd * keep))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, mixed, gain, keep, mean, rstd = ctx.saved_tensors
        along = (grad * mixed).sum(dim=(1, 2))[:, None, None] * keep  # (batch, 1, 1, width)
        scaled = grad * (gain * (rstd * keep))
        # The mean divides by the number of neighbours, so its transpose divides first and sums then.
        dx = _summed_back(scaled, ctx.size).sub_(scaled).add_(grad)
        a = -(along * gain).sum(dim=-1, keepdim=True) * rstd.pow(3) / x[0].numel()
        dx.addcmul_(x, a).sub_(a * mean)
        # The norm's bias cancels. Its gradient is zero and not None, for those who wait for every parameter's.
        return dx, (along * rstd).sum(dim=(0, 1, 2)), torch.zeros_like(gain), None, None, None


def pool_residual(x: Tensor, gain: Tensor, bias: Tensor, keep: Tensor, size: int, eps: float) -> Tensor:
    """x + keep·gain·pooling(GroupNorm₁(x)) for a map (batch, rows, columns, width).

    `gain` and the norm's `bias` (width) are learned, `keep` (batch, 1, 1, 1) is the stochastic depth of each image.
    The mean of a neighbourhood minus the token itself does not see what all tokens share, so the norm's mean and bias
    cancel, and its division by σ commutes with the pooling: the normalised map is never made.
    """
    out: Tensor = _PoolResidual.apply(x, gain, bias, keep, size, eps)  # type: ignore[no-untyped-call]
    return out


def _averaged(x: Tensor, size: int) -> Tensor:
    mean = F.avg_pool2d(x.movedim(-1, 1), size, stride=1, padding=size // 2, count_include_pad=False)
    return mean.movedim(1, -1)


def _summed_back(grad: Tensor, size: int) -> Tensor:
    """The transpose of `_averaged`: PyTorch's own, on a gradient whose input is never looked at."""
    channels_first = grad.movedim(-1, 1)
    pad = [size // 2, size // 2]
    out: Tensor = torch.ops.aten.avg_pool2d_backward(
        channels_first, channels_first, [size, size], [1, 1], pad, False, False, None
    )
    return out.movedim(1, -1)
