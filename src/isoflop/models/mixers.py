"""Token mixers, in which the members of the MetaFormer family differ.

Every mixer maps (batch, rows, columns, channels) to the same shape. Those that need no grid also accept
(batch, tokens, channels), the input in models with prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.layers import ACTIVATIONS, LayerNorm
from isoflop.models.operators import Linear, attention
from isoflop.models.parameters import Kinds
from isoflop.models.user_code import load_code, told


@dataclass(frozen=True)
class Site:
    """Where a mixer is put and what it may want to know: the stage's width and grid, and the options of all mixers."""

    width: int
    grid: tuple[int, int]
    heads: int = 1
    hidden: int = 0
    bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    pool_size: int = 3
    kernel_size: int = 7
    reduction: int = 1
    window: int = 8
    shift: int = 0
    activation: str = "gelu"

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762) with one matrix product for query, key and value.

    With `qk_norm`, queries and keys are normalised per head (arXiv 2302.05442).
    """

    split_by_head: ClassVar[dict[str, int]] = {"qkv": 3, "proj": 0}

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.heads, head_width = site.heads, _head_width(site)
        self.qkv = Linear(site.width, 3 * site.width, bias=site.qkv_bias)
        self.q_norm = LayerNorm(head_width) if site.qk_norm else nn.Identity()
        self.k_norm = LayerNorm(head_width) if site.qk_norm else nn.Identity()
        self.proj = Linear(site.width, site.width, bias=site.bias)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """What the tokens from `first` on see of all of them: as many as these are. A map is mixed whole."""
        # (batch, tokens, 3, heads, head width) -> three of (batch, heads, tokens, head width), all views
        q, k, v = self.qkv(x).view(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads).transpose(1, 3).unbind(2)
        out = attention(self.q_norm(q[:, :, first:]), self.k_norm(k), v)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(x[:, first:].shape))
        return projected


class ReducedAttention(nn.Module):
    """Attention whose keys and values come from a map shrunk by a strided convolution (PVT, arXiv 2102.12122, eq. 2).

    A `reduction` of 1 shrinks nothing and needs no grid.
    """

    split_by_head: ClassVar[dict[str, int]] = {"q": 1, "kv": 2, "proj": 0}

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.heads, self.reduction = site.heads, site.reduction
        _head_width(site)
        self.q = Linear(site.width, site.width, bias=site.qkv_bias)
        self.kv = Linear(site.width, 2 * site.width, bias=site.qkv_bias)
        self.proj = Linear(site.width, site.width, bias=site.bias)
        if site.reduction > 1:
            if min(site.grid) < site.reduction:
                raise ModelError(
                    f"a map of {site.grid[0]}x{site.grid[1]} cells is too small to shrink {site.reduction}x"
                )
            self.shrink = nn.Conv2d(site.width, site.width, site.reduction, site.reduction)
            self.norm = LayerNorm(site.width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        batch, head_width = x.shape[0], x.shape[-1] // self.heads
        small = x
        if self.reduction > 1:
            small = self.norm(self.shrink(x.movedim(-1, 1)).movedim(1, -1))
        q = self.q(x).view(batch, -1, self.heads, head_width).transpose(1, 2)
        k, v = self.kv(small).view(batch, -1, 2, self.heads, head_width).transpose(1, 3).unbind(2)
        out = attention(q, k, v)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(x.shape))
        return projected


class Pooling(nn.Module):
    """The mean of a neighbourhood, minus the token itself (PoolFormer, arXiv 2111.11418, eq. 4).

    The block adds the token back as its residual, hence the subtraction. Cost: 9 additions a channel, no parameters.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.pool_size % 2 == 0 or site.pool_size < 1:
            raise ModelError(f"a pooling mixer needs an odd size to stay centred, not {site.pool_size}")
        self.size = site.pool_size

    def forward(self, x: Tensor) -> Tensor:
        # Padding is left out of the mean: a border token averages fewer neighbours.
        mean = F.avg_pool2d(x.movedim(-1, 1), self.size, stride=1, padding=self.size // 2, count_include_pad=False)
        return mean.movedim(1, -1) - x


class Identity(nn.Module):
    """No mixing at all: the floor of the MetaFormer ablation. It still costs a residual."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class RandomMixing(nn.Module):
    """Every token becomes a frozen random average of all (RandFormer, arXiv 2210.13452, eq. 5)."""

    weight: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(site.tokens, site.tokens).softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.weight, x.flatten(1, -2)).view_as(x)


class TokenLinear(nn.Module):
    """One linear map over the tokens, shared by all channels (ResMLP, arXiv 2105.03404, eq. 2)."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.fc = Linear(site.tokens, site.tokens, bias=site.bias)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc(x.flatten(1, -2).transpose(1, 2))
        return mixed.transpose(1, 2).view(x.shape)


class TokenMLP(nn.Module):
    """Two linear maps over the tokens with an activation between (MLP-Mixer, arXiv 2105.01601, eq. 1)."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.fc1 = Linear(site.tokens, site.hidden)
        self.act = ACTIVATIONS[site.activation]()
        self.fc2 = Linear(site.hidden, site.tokens)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(self.act(self.fc1(x.flatten(1, -2).transpose(1, 2))))
        return mixed.transpose(1, 2).reshape(x.shape)


class GatedMLP(nn.Module):
    """A channel MLP whose hidden half is gated by a linear map over the tokens of the other (gMLP, arXiv 2105.08050).

    It is mixer and channel MLP in one: its block has no second half. The gate starts as the constant 1.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.hidden % 2:
            raise ModelError(f"gMLP splits its hidden width in two, which {site.hidden} does not allow")
        self.fc1 = Linear(site.width, site.hidden)
        self.act = ACTIVATIONS[site.activation]()
        self.norm = LayerNorm(site.hidden // 2, eps=1e-5)
        self.gate = Linear(site.tokens, site.tokens)
        self.fc2 = Linear(site.hidden // 2, site.width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.act(self.fc1(x.flatten(1, -2))).chunk(2, dim=-1)
        gate = self.gate(self.norm(v).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = self.fc2(u * gate)
        return mixed.view(x.shape)


class WindowMLP(nn.Module):
    """A linear map over the tokens of a window, one per head of channels (Swin-Mixer, arXiv 2103.14030, section 4).

    Every second block shifts the windows, with zeros beyond the border.
    """

    parameter_kinds: ClassVar[Kinds] = {"weight": "kernel", "bias": "bias"}

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.window = min(site.window, *site.grid)
        # When one window covers the map there is nothing to shift to.
        self.shift = site.shift if min(site.grid) > self.window else 0
        if any(side % self.window for side in site.grid):
            raise ModelError(f"a map of {site.grid[0]}x{site.grid[1]} does not divide into windows of {self.window}")
        self.heads = site.heads
        _head_width(site)
        self.weight = nn.Parameter(torch.empty(site.heads, self.window**2, self.window**2))
        self.bias = nn.Parameter(torch.zeros(site.heads, self.window**2, 1))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        size, before, after = self.window, (self.window - self.shift) % self.window, self.shift
        if self.shift:
            x = F.pad(x, (0, 0, before, after, before, after))
        batch, rows, columns, width = x.shape
        cells = x.view(batch, rows // size, size, columns // size, size, self.heads, width // self.heads)
        cells = cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, self.heads, size * size, width // self.heads)
        cells = torch.matmul(self.weight, cells) + self.bias
        cells = cells.view(batch, rows // size, columns // size, self.heads, size, size, -1)
        x = cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, rows, columns, width)
        return x[:, before : rows - after, before : columns - after] if self.shift else x


class Fourier(nn.Module):
    """The real part of the Fourier transform over tokens and channels (FNet, arXiv 2105.03824, eq. 3)."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = torch.fft.fft2(x.flatten(1, -2).float(), norm="ortho").real
        return mixed.to(x.dtype).view_as(x)


class Depthwise(nn.Module):
    """A depthwise convolution of `pool_size`: the learnable relative of pooling in the MetaFormer ablation."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            site.width, site.width, site.pool_size, padding=site.pool_size // 2, groups=site.width, bias=site.bias
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.movedim(-1, 1))
        return out.movedim(1, -1)


class SeparableConv(nn.Module):
    """Widen twice, activate, depthwise convolution, narrow (ConvFormer, arXiv 2210.13452, eq. 8)."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        width, size = 2 * site.width, site.kernel_size
        self.fc1 = Linear(site.width, width, bias=site.bias)
        self.act = ACTIVATIONS["star_relu"]()
        self.conv = nn.Conv2d(width, width, size, padding=size // 2, groups=width, bias=site.bias)
        self.fc2 = Linear(width, site.width, bias=site.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.act(self.fc1(x)).movedim(-1, 1)).movedim(1, -1)
        out: Tensor = self.fc2(x)
        return out


MIXERS: dict[str, Callable[[Site], nn.Module]] = {
    "attention": Attention,
    "reduced_attention": ReducedAttention,
    "pooling": Pooling,
    "identity": Identity,
    "random": RandomMixing,
    "token_linear": TokenLinear,
    "token_mlp": TokenMLP,
    "gated_mlp": GatedMLP,
    "window_mlp": WindowMLP,
    "fourier": Fourier,
    "depthwise": Depthwise,
    "separable_conv": SeparableConv,
}

# Only attention can do with any set of tokens: the others are tied to a grid, or to their number.
SET_MIXERS = frozenset({"attention", "reduced_attention", "identity", "fourier"})


def build_mixer(name: str, site: Site) -> nn.Module:
    """The mixer of that name, one of `MIXERS` or code of the user's own (`user_code.py`)."""
    return MIXERS[name](site) if name in MIXERS else _user_mixer(name, site)


def _user_mixer(spec: str, site: Site) -> nn.Module:
    """The mixer that the code `spec` makes for `site`; ModelError where it makes no module."""
    make = load_code(spec)
    try:
        mixer = make(site)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{spec}: cannot be built: {told(error, spec)}") from error
    if not isinstance(mixer, nn.Module):
        raise ModelError(f"{spec}: gives {type(mixer).__name__}, not a torch.nn.Module")
    return mixer


def takes_sets(name: str) -> bool:
    """Whether the mixer takes any set of tokens, as code of the user's own says by `takes_sets = True`."""
    return name in SET_MIXERS or (name not in MIXERS and bool(getattr(load_code(name), "takes_sets", False)))


def _head_width(site: Site) -> int:
    if site.heads < 1 or site.width % site.heads:
        raise ModelError(f"a width of {site.width} cannot be split into {site.heads} heads")
    return site.width // site.heads
