"""Convolutions with standardised weights, for networks without batch statistics (arXiv 1903.10520).

The standardisation depends only on the weights and is computed once per step.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.operators import linear
from isoflop.models.parameters import Kinds

FLOOR = 1e-4  # of fan_in·var (arXiv 2102.06171, authors' code)


class _Standardise(torch.autograd.Function):
    """(w − μ)·gain / √max(fan_in·(var + eps), floor) per row, in few passes over the weights forward and backward.

    Both are linear in the weights and their gradient, so that nothing of the weights' size is kept in between.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor, eps: float, floor: float) -> Tensor:
        # Two plain passes: `torch.var_mean` is some twenty times as slow on a CPU.
        mean = weight.mean(dim=1, keepdim=True)
        out = weight - mean
        power = torch.linalg.vector_norm(out, dim=1, keepdim=True).square() + eps * weight.shape[1]
        scale = power.clamp(min=floor).rsqrt()
        ctx.save_for_backward(weight, mean, scale, power, gain)
        ctx.floor = floor
        return out.mul_(scale * gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, mean, scale, power, gain = ctx.saved_tensors
        product = grad * weight
        total = grad.sum(dim=1, keepdim=True)
        along = (product.sum(dim=1, keepdim=True) - mean * total) * scale  # grad · unit vector of the row: d gain
        # (grad − its mean − along·unit)·scale·gain; below the floor the scale is a constant, so only the mean goes.
        a = -along * (power > ctx.floor) * scale
        dw = torch.addcmul(
            (-total / weight.shape[1] - a * mean) * (scale * gain), weight, a * (scale * gain), out=product
        )
        return dw.addcmul_(grad, scale * gain), along, None, None


class StandardisedConv(nn.Conv2d):
    """A convolution whose weights have zero mean and variance 1/fan_in per output, times a learnable gain, and a bias.

    (w − μ)·gain / √max(fan_in·var, 1e-4) (arXiv 2102.06171, eq. 1). Maps are (batch, rows, columns, width). Strided
    ones are padded as TensorFlow's SAME: an even map gets its one line of zeros below and to the right.
    """

    parameter_kinds: ClassVar[Kinds] = {"gain": "gain"}

    def __init__(
        self, width: int, new_width: int, kernel: int, stride: int = 1, groups: int = 1, eps: float = 0.0
    ) -> None:
        super().__init__(width, new_width, kernel, stride, groups=groups)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(new_width, 1, 1, 1))

    def standardised(self, factor: float = 1.0) -> Tensor:
        """The weights of this step (new width, width/groups, kernel, kernel), times `factor`."""
        gain = self.gain.view(-1, 1) * factor
        return _shaped(_Standardise.apply(_rows(self.weight), gain, self.eps, FLOOR), self.weight)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """The convolution of `factor`·x; the factor is applied to the weights, which are smaller."""
        weight = self.standardised(factor)
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1 and stride == 1:
            return linear(x, weight.flatten(1), self.bias)
        padding = kernel // 2
        if stride > 1:
            rows, columns = (_same(side, kernel, stride) for side in x.shape[1:3])
            x, padding = F.pad(x, (0, 0, *columns, *rows)), 0
        out = F.conv2d(x.movedim(-1, 1), weight, self.bias, stride, padding, groups=self.groups)
        return out.movedim(1, -1)


class PlainStandardisedConv(nn.Conv2d):
    """A convolution whose weights have zero mean and unit variance per output; no gain, no bias (BiT).

    (w − μ) / √(var + eps) (arXiv 1912.11370, section 3). Maps are (batch, rows, columns, width), padding is symmetric.
    """

    def __init__(self, width: int, new_width: int, kernel: int, stride: int = 1, eps: float = 1e-10) -> None:
        super().__init__(width, new_width, kernel, stride, padding=kernel // 2, bias=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # BatchNorm over the fan-in of each output is this formula, in PyTorch's fastest kernel for it.
        rows = F.batch_norm(_rows(self.weight)[None], None, None, training=True, momentum=0.0, eps=self.eps).squeeze(0)
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            return linear(x, rows)
        out = F.conv2d(x.movedim(-1, 1), _shaped(rows, self.weight), None, self.stride, self.padding)
        return out.movedim(1, -1)


def _rows(weight: Tensor) -> Tensor:
    """(outputs, fan-in) of a kernel; no copy where its channels are last in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _shaped(rows: Tensor, weight: Tensor) -> Tensor:
    """The inverse of `_rows`: `rows` in the shape of `weight`, with channels last in memory."""
    outputs, channels, *kernel = weight.shape
    return rows.view(outputs, *kernel, channels).permute(0, 3, 1, 2)


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
