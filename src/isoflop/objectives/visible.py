"""Running a backbone on the visible part of an image, without information from the masked part.

Masked cells are those of the coarsest map, and all positions on finer maps that they cover. Inside `only_visible`,
every operator with a receptive field beyond one cell is replaced by one that uses only visible cells. Convolutions see
zeros at masked positions, as beyond the border; means, statistics and attention exclude them (sparse masked modelling,
arXiv 2301.03580; ConvNeXt V2, arXiv 2301.00808).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.bit import BiT, GroupNormReLU, PlainConv
from isoflop.models.blocks import Block
from isoflop.models.layers import BatchNorm
from isoflop.models.metaformer import MetaFormer
from isoflop.models.mixers import Attention, Pooling, RandomMixing, ReducedAttention
from isoflop.models.nfnet import NFNet, SqueezeExcite
from isoflop.models.operators import GroupNorm, attention
from isoflop.models.standardised import PlainStandardisedConv, StandardisedConv

MIXERS = ("attention", "reduced_attention", "pooling", "depthwise", "separable_conv", "random", "identity")
FAMILIES = "vit, deit, mae, poolformer, convformer, caformer, pvt, nfnet, resnet, bit and their relatives"


class VisibleCells:
    """Which cells are visible, on every map between the image and the coarsest one.

    `keep` (B, visible) are the indices of the visible cells of the coarsest `grid`.
    """

    def __init__(self, keep: Tensor, grid: tuple[int, int]) -> None:
        self.keep, self.grid = keep, grid
        coarse = torch.zeros(len(keep), grid[0] * grid[1], device=keep.device)
        self.coarse = coarse.scatter(1, keep, 1.0).view(-1, *grid, 1)
        self._maps: dict[tuple[int, int], Tensor] = {}

    def at(self, rows: int, columns: int) -> Tensor:
        """1 where a map of that size is visible and 0 elsewhere: float (B, rows, columns, 1)."""
        if (rows, columns) not in self._maps:
            wide = self.coarse.repeat_interleave(rows // self.grid[0], dim=1)
            self._maps[rows, columns] = wide.repeat_interleave(columns // self.grid[1], dim=2)
        return self._maps[rows, columns]

    def over(self, x: Tensor) -> Tensor:
        """`at` the size of a map (B, rows, columns, width), in its type."""
        return self.at(x.shape[1], x.shape[2]).to(x.dtype)

    def indices(self, x: Tensor) -> Tensor:
        """Visible positions among the flattened ones: of a map (B, rows, columns, width), or of tokens of the coarsest
        map (B, prefix + count, width), whose prefix is always visible. int64 (B, n, 1).
        """
        if x.ndim == 3:
            prefix = x.shape[1] - self.grid[0] * self.grid[1]
            first = torch.arange(prefix, device=x.device).expand(len(x), -1)
            return torch.cat([first, self.keep + prefix], dim=1)[..., None]
        high, wide = x.shape[1] // self.grid[0], x.shape[2] // self.grid[1]
        row, column = self.keep // self.grid[1], self.keep % self.grid[1]
        rows = row[..., None, None] * high + torch.arange(high, device=x.device)[:, None]
        columns = column[..., None, None] * wide + torch.arange(wide, device=x.device)
        return (rows * x.shape[2] + columns).flatten(1)[..., None]

    def gather(self, x: Tensor) -> Tensor:
        """The visible cells (B, n, width) of a map or of tokens."""
        return x.flatten(1, -2).gather(1, self.indices(x).expand(-1, -1, x.shape[-1]))

    def scatter(self, cells: Tensor, x: Tensor) -> Tensor:
        """What `gather` took from `x`, changed, at its place; zeros elsewhere."""
        index = self.indices(x).expand(-1, -1, cells.shape[-1])
        empty = cells.new_zeros(*x.flatten(1, -2).shape[:2], cells.shape[-1])
        return empty.scatter(1, index, cells).view(*x.shape[:-1], cells.shape[-1])


@contextmanager
def only_visible(backbone: Backbone, keep: Tensor, grid: tuple[int, int]) -> Iterator[None]:
    """While it lasts, `backbone` sees the `keep` (B, visible) cells of its coarsest map of `grid` cells alone.

    What it puts out at hidden cells means nothing.
    """
    sight = VisibleCells(keep, grid)
    changed: list[nn.Module] = []
    try:
        for module in backbone.modules():
            stands_in = _stand_in(module, backbone)
            if stands_in is not None:
                module.forward = functools.partial(stands_in, module, sight)
                changed.append(module)
            if isinstance(module, Block) and module.fused:
                module.fused = False
                changed.append(module)
        yield
    finally:
        for module in changed:
            if isinstance(module, Block):
                module.fused = True
            else:
                del module.forward


def check_can_hide(backbone: Backbone) -> None:
    """Raises ModelError, which says who can, when parts of the image cannot be hidden from `backbone`."""
    if isinstance(backbone, NFNet | BiT):
        return
    if not isinstance(backbone, MetaFormer):
        raise ModelError(f"{backbone.preset} cannot be trained by masking, only these families can: {FAMILIES}")
    tied = [mixer for mixer in dict.fromkeys(backbone.config.mixers) if mixer not in MIXERS]
    if tied:
        raise ModelError(
            f"{backbone.preset} cannot be trained by masking: its {tied[0]} mixer needs every token in its place; "
            f"those that can do without some are {', '.join(MIXERS)} (families {FAMILIES})"
        )


# --- what stands in for an operator: (module, sight, its arguments) -> its result -----------------------------------


def _map_conv(module: nn.Conv2d, sight: VisibleCells, x: Tensor, *more: Any) -> Tensor:
    """A convolution of a map (B, rows, columns, width)."""
    out: Tensor = type(module).forward(module, x * sight.over(x), *more)
    return out


def _image_conv(module: nn.Conv2d, sight: VisibleCells, x: Tensor) -> Tensor:
    """A convolution of images or maps (B, channels, height, width)."""
    return type(module).forward(module, x * sight.over(x.movedim(1, -1)).movedim(-1, 1))


def _stem_before_pooling(module: nn.Conv2d, sight: VisibleCells, x: Tensor) -> Tensor:
    """BiT's stem: what follows is a max pooling of its output, next to which what is hidden must be zero as well."""
    out = _map_conv(module, sight, x)
    return out * sight.over(out)


def _pooling(module: Pooling, sight: VisibleCells, x: Tensor) -> Tensor:
    seen = sight.over(x)

    def mean(values: Tensor) -> Tensor:
        pooled = F.avg_pool2d(values.movedim(-1, 1), module.size, 1, module.size // 2, count_include_pad=False)
        return pooled.movedim(1, -1)

    return mean(x * seen) / mean(seen).clamp(min=1e-6) - x


def _random(module: RandomMixing, sight: VisibleCells, x: Tensor) -> Tensor:
    seen = sight.over(x).flatten(1, 2)
    total = torch.matmul(module.weight, x.flatten(1, 2) * seen)
    return (total / torch.matmul(module.weight, seen).clamp(min=1e-6)).view_as(x)


def _on_cells(module: nn.Module, sight: VisibleCells, x: Tensor) -> Tensor:
    """Attention and BatchNorm take any set of cells."""
    cells = sight.gather(x)
    return sight.scatter(type(module).forward(module, cells), x)


def _reduced_attention(module: ReducedAttention, sight: VisibleCells, x: Tensor) -> Tensor:
    if module.reduction == 1:
        return _on_cells(module, sight, x)
    small = module.norm(module.shrink(x.movedim(-1, 1)).movedim(1, -1))
    split = (len(x), -1, module.heads, x.shape[-1] // module.heads)
    q = module.q(x).view(split).transpose(1, 2)
    k, v = (part.reshape(split).transpose(1, 2) for part in module.kv(small).chunk(2, dim=-1))
    seen = sight.over(small).view(len(x), 1, 1, -1) > 0
    out = attention(q, k, v, seen)
    projected: Tensor = module.proj(out.transpose(1, 2).reshape(x.shape))
    return projected


def _group_norm(module: GroupNorm, sight: VisibleCells, x: Tensor) -> Tensor:
    cells = sight.gather(x)  # statistics come from these alone, and go to all
    per_group = cells.view(*cells.shape[:-1], module.groups, -1)
    var, mean = torch.var_mean(per_group, dim=(1, 3), keepdim=True, correction=0)
    shape = (len(x), *(1,) * (x.ndim - 2), module.groups, 1)
    centred = x.view(*x.shape[:-1], module.groups, -1) - mean.view(shape)
    out: Tensor = (centred * (var + module.eps).rsqrt().view(shape)).flatten(-2) * module.weight
    out = out if module.bias is None else out + module.bias
    return out.relu() if isinstance(module, GroupNormReLU) else out


def _squeeze_excite(module: SqueezeExcite, sight: VisibleCells, x: Tensor) -> Tensor:
    return type(module).forward(module, sight.gather(x)[:, :, None])


STAND_INS: tuple[tuple[type[nn.Module], Callable[..., Tensor]], ...] = (
    (StandardisedConv, _map_conv),
    (PlainStandardisedConv, _map_conv),
    (PlainConv, _map_conv),
    (nn.Conv2d, _image_conv),
    (Pooling, _pooling),
    (RandomMixing, _random),
    (Attention, _on_cells),
    (ReducedAttention, _reduced_attention),
    (BatchNorm, _on_cells),
    (GroupNorm, _group_norm),
    (SqueezeExcite, _squeeze_excite),
)


def _stand_in(module: nn.Module, backbone: Backbone) -> Callable[..., Tensor] | None:
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return None  # looks at its own cell only; a strided one at one of four of the same coarser cell
    if isinstance(backbone, BiT) and module is backbone.stem and backbone.config.stem_stride == 4:
        return _stem_before_pooling
    return next((stands_in for kind, stands_in in STAND_INS if isinstance(module, kind)), None)
