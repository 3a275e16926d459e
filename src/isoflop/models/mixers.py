"""Token mixers: the one part in which the members of the MetaFormer family differ.

Every mixer maps (batch, height, width, channels) to the same shape. Those that need no grid also take
(batch, tokens, channels), which is what models with prefix tokens hand them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError


@dataclass(frozen=True)
class Site:
    """Where a mixer is put and what it may want to know: the stage's width and grid, and the options of all mixers."""

    width: int
    grid: tuple[int, int]
    heads: int
    mixer_bias: bool = True
    qk_norm: bool = False
    pool_size: int = 3


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762) with one matrix product for query, key and value.

    With `qk_norm`, queries and keys are normalised per head (arXiv 2302.05442).
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.width % site.heads:
            raise ModelError(f"attention of width {site.width} cannot be split into {site.heads} heads")
        self.heads = site.heads
        self.qkv = nn.Linear(site.width, 3 * site.width, bias=site.mixer_bias)
        head_width = site.width // site.heads
        self.q_norm = nn.LayerNorm(head_width, eps=1e-6) if site.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_width, eps=1e-6) if site.qk_norm else nn.Identity()
        self.proj = nn.Linear(site.width, site.width, bias=site.mixer_bias)

    def forward(self, x: Tensor) -> Tensor:
        # (batch, tokens, 3, heads, head width) -> three of (batch, heads, tokens, head width), all views
        q, k, v = self.qkv(x).view(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads).transpose(1, 3).unbind(2)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
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


MIXERS: dict[str, Callable[[Site], nn.Module]] = {
    "attention": Attention,
    "pooling": Pooling,
    "identity": Identity,
}

# Mixers that see the grid cannot live with a class token between the patches.
GRID_MIXERS = frozenset({"pooling"})
