"""Layers that backbones share: norms, activations, the channel MLP, residual scales.

All work on the last axis: (batch, tokens, channels) and (batch, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.operators import GroupNorm, Linear
from isoflop.models.parameters import Kinds


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels; eps 1e-6 is that of the ViT and MetaFormer papers' code."""

    def __init__(self, width: int, eps: float = 1e-6, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over every axis but the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


class Affine(nn.Module):
    """Scale and shift without statistics: ResMLP's norm (arXiv 2105.03404, eq. 1)."""

    parameter_kinds: ClassVar[Kinds] = {"weight": "gain", "bias": "bias"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


# From a width and an eps; those without statistics have no use for the latter.
NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layer": LayerNorm,
    "layer_without_bias": lambda width, eps: LayerNorm(width, eps, bias=False),
    "group": lambda width, eps: GroupNorm(width, 1, eps),
    "group_without_bias": lambda width, eps: GroupNorm(width, 1, eps, bias=False),
    "batch": lambda width, eps: BatchNorm(width, eps),
    "affine": lambda width, eps: Affine(width),
    "none": lambda width, eps: nn.Identity(),
}


class _StarReLU(torch.autograd.Function):
    """scale·relu(x)² + bias that keeps one tensor for the backward pass, where the composition keeps three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        root = x.relu()
        ctx.save_for_backward(root, scale)
        return torch.addcmul(bias, root, root * scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        root, scale = ctx.saved_tensors
        along = grad * root
        return along * (2 * scale), (along * root).sum().view(1), grad.sum().view(1)


class StarReLU(nn.Module):
    """s·relu(x)² + b with learnable scalars, started from (1, 0) (arXiv 2210.13452, eq. 6)."""

    parameter_kinds: ClassVar[Kinds] = {"scale": "scale", "bias": "bias"}

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _StarReLU.apply(x, self.scale, self.bias)  # type: ignore[no-untyped-call]
        return out


class SquaredReLU(nn.Module):
    """relu(x)² (arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "star_relu": StarReLU,
    "squared_relu": SquaredReLU,
}


class ChannelMLP(nn.Module):
    """Two matrix products on the last axis with an activation between: the second half of a MetaFormer block.

    With `depthwise`, a 3x3 depthwise convolution of the hidden map comes before the activation (PVT v2,
    arXiv 2106.13797); the input is then (batch, rows, columns, width).
    """

    def __init__(
        self, width: int, hidden: int, activation: str = "gelu", bias: bool = True, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, bias=bias)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        self.act = ACTIVATIONS[activation]()
        self.fc2 = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.dwconv is not None:
            x = self.dwconv(x.movedim(-1, 1)).movedim(1, -1)
        out: Tensor = self.fc2(self.act(x))
        return out


class Scale(nn.Module):
    """A learnable factor per channel: LayerScale on a branch (arXiv 2103.17239), ResScale on the shortcut."""

    parameter_kinds: ClassVar[Kinds] = {"gamma": "scale"}

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


# Position embeddings: fixed sines and cosines, and the resizing of learned ones to another grid.


# What the exponent k of the n frequencies 10000^-(k/…) is divided by: n - 1 in big_vision's ViTs (arXiv 2205.01580,
# authors' code), whose last frequency is 1/10000; n in MAE (arXiv 2111.06377, authors' code).
SINCOS: dict[str, Callable[[int], int]] = {"sincos": lambda n: max(n - 1, 1), "sincos_mae": lambda n: n}


def sincos_2d(grid: tuple[int, int], width: int, kind: str = "sincos") -> Tensor:
    """Fixed position embedding (height·width, width): sin and cos of x, then of y. `kind` is a key of `SINCOS`.

    The width must be a multiple of 4.
    """
    count = width // 4
    omega = 10_000.0 ** -(torch.arange(count, dtype=torch.float64) / SINCOS[kind](count))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    y, x = rows.reshape(-1, 1) * omega, columns.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def resize(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """A position table (1, old height·width, channels) interpolated to (1, new height·width, channels)."""
    if old == new:
        return table
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=new, mode=mode, antialias=True, align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(table.dtype)
