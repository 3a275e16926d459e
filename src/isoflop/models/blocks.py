"""What a MetaFormer is stacked from: the block, the stem, and the ways from one stage to the next.

All maps are (batch, rows, columns, width); blocks of models with prefix tokens see (batch, tokens, width).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.drop import drop_path
from isoflop.models.grouped import GroupNorm, pool_residual
from isoflop.models.layers import NORMS, ChannelMLP, LayerNorm, Scale
from isoflop.models.linear import linear
from isoflop.models.mixers import MIXERS, Pooling, Site


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
        self.mixer = MIXERS[mixer](site)
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
