"""Building blocks of a MetaFormer: the block, the stem, downsampling, drop path.

All maps are (batch, rows, columns, width); blocks of models with prefix tokens use (batch, tokens, width).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.layers import NORMS, ChannelMLP, LayerNorm, Scale
from isoflop.models.mixers import Pooling, Site, build_mixer
from isoflop.models.operators import GroupNorm, linear, pool_residual

# Stochastic depth and dropout: what is random in a backbone's training.
#
# The numbers come from PyTorch's global generator, which a step seeds. A process that has only some rows of a batch
# (one
# of several ranks, or a part of a batch that does not fit at once) draws for the whole batch and takes its rows, so
# that
# the numbers of a sample do not depend on how the batch was divided.


# Not a context variable: recomputed activations are drawn again by threads of the backward pass.
_rows: tuple[int, int] | None = None


@contextmanager
def rows_of_batch(first: int, total: int) -> Iterator[None]:
    """Within, batches are rows `first`, `first` + 1, … of a batch of `total` images."""
    global _rows
    before, _rows = _rows, (first, total)
    try:
        yield
    finally:
        _rows = before


def drop_path(branch: Tensor, rate: float, training: bool, scale_by_keep: bool = True) -> Tensor:
    """`branch` with whole samples zeroed at `rate` (stochastic depth, arXiv 1603.09382).

    The others are divided by the probability of being kept, unless not `scale_by_keep`.
    """
    if rate == 0.0 or not training:
        return branch
    count = len(branch)
    first, total = _rows or (0, count)
    keep = branch.new_empty((total,) + (1,) * (branch.ndim - 1)).bernoulli_(1 - rate)
    if scale_by_keep:
        keep.div_(1 - rate)
    return branch * keep[first : first + count]


class Dropout(nn.Dropout):
    """PyTorch's dropout, the same for each sample however the batch is divided."""

    def forward(self, x: Tensor) -> Tensor:
        if _rows is None or not self.training or self.p == 0.0:
            return super().forward(x)
        first, total = _rows
        keep = F.dropout(x.new_ones((total, *x.shape[1:])), self.p, training=True)
        return x * keep[first : first + len(x)]


class DropPath(nn.Module):
    """`drop_path` as a module."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate, self.training)


class Block(nn.Module):
    """A token mixer and a channel MLP, each behind a norm and inside a residual.

    `layer_scale` multiplies a branch per channel, `res_scale` the shortcut beside it; None leaves them out.
    """

    def __init__(
        self,
        mixer: str,
        site: Site,
        *,
        mlp_width: int,
        norm: str,
        norm_eps: float,
        mlp_bias: bool,
        mlp_depthwise: bool,
        channel_mlp: bool,
        residual: bool,
        layer_scale: float | None,
        res_scale: float | None,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.residual, self.drop_rate = residual, drop_rate
        self.norm1 = NORMS[norm](site.width, norm_eps)
        self.mixer = build_mixer(mixer, site)
        self.scale1 = None if layer_scale is None else Scale(site.width, layer_scale)
        self.shortcut1 = None if res_scale is None else Scale(site.width, res_scale)
        self.mlp: ChannelMLP | None = None
        if channel_mlp:
            self.norm2 = NORMS[norm](site.width, norm_eps)
            self.mlp = ChannelMLP(site.width, mlp_width, site.activation, mlp_bias, mlp_depthwise)
            self.scale2 = None if layer_scale is None else Scale(site.width, layer_scale)
            self.shortcut2 = None if res_scale is None else Scale(site.width, res_scale)
        # PoolFormer's first half is one operator.
        self.fused = isinstance(self.norm1, GroupNorm) and isinstance(self.mixer, Pooling)
        self.fused = self.fused and residual and self.shortcut1 is None

    def forward(self, x: Tensor) -> Tensor:
        norm, mixer = self.norm1, self.mixer
        if self.fused and isinstance(norm, GroupNorm) and isinstance(mixer, Pooling):
            gain = norm.weight if self.scale1 is None else norm.weight * self.scale1.gamma
            keep = drop_path(x.new_ones(x.shape[0], 1, 1, 1), self.drop_rate, self.training)
            bias = torch.zeros_like(gain) if norm.bias is None else norm.bias
            x = pool_residual(x, gain, bias, keep, mixer.size, norm.eps)
        else:
            x = self._add(x, mixer(norm(x)), self.scale1, self.shortcut1)
        if self.mlp is not None:
            x = self._add(x, self.mlp(self.norm2(x)), self.scale2, self.shortcut2)
        return x

    def _add(self, x: Tensor, branch: Tensor, scale: Scale | None, shortcut: Scale | None) -> Tensor:
        branch = drop_path(branch, self.drop_rate, self.training)
        if not self.residual:
            return branch if scale is None else scale(branch)
        if shortcut is not None:
            return torch.addcmul(branch if scale is None else scale(branch), x, shortcut.gamma)
        return x + branch if scale is None else torch.addcmul(x, branch, scale.gamma)


class Patches(nn.Module):
    """A strided convolution of a map, or of images (batch, channels, height, width), with an optional norm after it."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, padding: int, norm: str = "none") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding)
        # The norms of patch embeddings keep PyTorch's eps in PVT, and 1e-6 in the MetaFormer baselines.
        self.norm = NORMS[norm](width, 1e-6 if norm == "layer_without_bias" else 1e-5)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The cells (batch, rows, columns, width); only those at `keep` (batch, kept) if given (batch, kept, width)."""
        conv, size = self.conv, self.conv.kernel_size[0]
        if conv.stride[0] == size and not conv.padding[0]:
            # Patches that do not overlap are one matrix product over the flattened pixels.
            batch, channels, height, width = images.shape
            images = images[:, :, : height // size * size, : width // size * size]
            pixels = images.reshape(batch, channels, height // size, size, width // size, size)
            pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // size, width // size, -1)
            if keep is not None:
                pixels = taken(pixels.flatten(1, 2), keep)
            out = linear(pixels, conv.weight.flatten(1), conv.bias)
        else:
            out = conv(images.contiguous(memory_format=torch.channels_last)).movedim(1, -1)
            if keep is not None:
                out = taken(out.flatten(1, 2), keep)
        normed: Tensor = self.norm(out)
        return normed


def taken(cells: Tensor, indices: Tensor) -> Tensor:
    """The cells (batch, n, width) at `indices` (batch, n) of `cells` (batch, count, width)."""
    return cells.gather(1, indices[..., None].expand(-1, -1, cells.shape[-1]))


class Downsample(nn.Module):
    """An optional norm, then `Patches` of the map."""

    def __init__(self, width: int, new_width: int, kernel: int, padding: int, norm: str, norm_after: str) -> None:
        super().__init__()
        self.norm = NORMS[norm](width, 1e-6)
        self.patches = Patches(width, new_width, kernel, 2, padding, norm_after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.patches(self.norm(x).movedim(-1, 1))
        return out


class PatchMerging(nn.Module):
    """Four neighbours side by side, normalised, then mapped to the new width (Swin, arXiv 2103.14030, section 3.1)."""

    def __init__(self, width: int, new_width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * width, eps=1e-5)
        self.reduction = nn.Linear(4 * width, new_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, columns, width = x.shape
        cells = F.pad(x, (0, 0, 0, columns % 2, 0, rows % 2))
        cells = cells.view(batch, (rows + 1) // 2, 2, (columns + 1) // 2, 2, width)
        # The order within a cell is Swin's: down the first column, then down the second.
        cells = cells.permute(0, 1, 3, 4, 2, 5).reshape(batch, (rows + 1) // 2, (columns + 1) // 2, 4 * width)
        out: Tensor = self.reduction(self.norm(cells))
        return out
