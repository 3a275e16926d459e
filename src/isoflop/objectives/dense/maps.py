"""Four feature maps of any backbone, each at half the resolution of the previous one, for detectors and segmenters.

A pyramid has them. A plain ViT has one resolution, from which the maps are made: all from its last map, the simple
feature pyramid of ViTDet (arXiv 2203.16527, section 3), or from taps at ⅓, ½, ⅔ and the whole of its depth, as in the
UperNets of BEiT and mmsegmentation (with 12 blocks the outputs of 4, 6, 8 and 12).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.blocks import Block
from isoflop.models.metaformer import MetaFormer
from isoflop.models.mixers import Attention
from isoflop.models.timm_adapter import TimmBackbone

# The maps inside a plain ViT, and attention in windows, whose cost grows with the pixels alone.
#
# Windows are put around the mixer and not around the block, so that the rest of the block, stochastic depth included,
# sees whole pictures. They are hooks: no weight changes its name.


class PlainBlocks(nn.Module):
    """The outputs of some blocks of a plain ViT as maps (batch, width, rows, columns).

    Args:
        shares: of the depth, at which outputs are taken.
        window: side in tokens of the windows; with it, prefix tokens take no part, as in ViTDet.
        global_blocks: blocks that attend to everything all the same, the last of as many equal parts of the depth.

    Raises ModelError where `backbone` cannot do so.
    """

    def __init__(self, backbone: Backbone, shares: Sequence[float], *, window: int | None, global_blocks: int) -> None:
        super().__init__()
        if isinstance(backbone, TimmBackbone):
            depth = len(backbone.model.feature_info)
        elif isinstance(backbone, MetaFormer):
            depth = backbone.config.depths[0]
        else:
            raise ModelError(f"{backbone.preset} hands out a single feature map and nothing before it")
        self.taps = [max(1, round(share * depth)) - 1 for share in shares]
        self.is_windowed = window is not None
        if window is None:
            return
        if not isinstance(backbone, MetaFormer) or set(backbone.config.mixers) != {"attention"}:
            raise ModelError(f"`objective.window`: {backbone.preset} is not a plain ViT of isoflop")
        ends = {round((k + 1) * depth / global_blocks) - 1 for k in range(global_blocks)}
        for index, block in enumerate(_blocks(backbone)):
            if index not in ends:
                put_windows(block.mixer, window)

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """One map for each tap."""
        distinct = sorted(set(self.taps))  # of a shallow network, some are the same
        if isinstance(backbone, TimmBackbone):
            found = backbone.model.forward_intermediates(
                images, indices=distinct, intermediates_only=True, output_fmt="NCHW"
            )
            return [found[distinct.index(tap)] for tap in self.taps]
        assert isinstance(backbone, MetaFormer)
        x = backbone.embed(images)
        batch, rows, columns, width = x.shape
        prefix = 0 if self.is_windowed else backbone.config.prefix_tokens
        if prefix:
            x = torch.cat([backbone.prefix.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(_blocks(backbone)):
            x = block(x)
            if index in distinct:
                cells = x[:, prefix:].reshape(batch, rows, columns, width) if prefix else x
                outputs[index] = cells.movedim(-1, 1)
        return [outputs[tap] for tap in self.taps]


def _blocks(backbone: MetaFormer) -> list[Block]:
    return [block for block in backbone.stages[0].modules() if isinstance(block, Block)]


def put_windows(mixer: nn.Module, size: int) -> None:
    """Has `mixer` see maps (batch, rows, columns, width) in windows of `size` × `size`, zeros at the end."""
    if not isinstance(mixer, Attention):
        raise ModelError("only attention can be given windows")

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        batch, rows, columns, width = x.shape
        module._map = (batch, rows, columns)  # type: ignore[assignment]  # the size to come back to
        x = F.pad(x, (0, 0, 0, -columns % size, 0, -rows % size))
        x = x.view(batch, x.shape[1] // size, size, x.shape[2] // size, size, width)
        return (x.transpose(2, 3).reshape(-1, size, size, width),)

    def after(module: Any, inputs: tuple[Tensor], x: Tensor) -> Tensor:
        batch, rows, columns = module._map
        down, across = -(-rows // size), -(-columns // size)
        x = x.view(batch, down, across, size, size, -1).transpose(2, 3)
        return x.reshape(batch, down * size, across * size, -1)[:, :rows, :columns]

    mixer.register_forward_pre_hook(before)
    mixer.register_forward_hook(after)


LEVELS = 4
TAPS = (1 / 3, 1 / 2, 2 / 3, 1.0)
_FINEST = (4, 8)  # where a pyramid may begin, px


class Maps(nn.Module, ABC):
    """From a backbone, which is passed in and not owned, to its maps.

    Attributes: `widths` and `strides` (pixels per cell) of the four maps, finest first.
    """

    widths: tuple[int, ...]
    strides: tuple[float, ...]

    @abstractmethod
    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Four maps (batch, width, rows, columns) of float images (batch, channels, height, width)."""


class Pyramid(Maps):
    """The stages' maps, each normalised: what a backbone hands from stage to stage is not. Where there are fewer than
    four stages, the last map is pooled."""

    def __init__(self, backbone: Backbone, strides: list[int]) -> None:
        super().__init__()
        self.strides = tuple(strides[0] * 2.0**k for k in range(LEVELS))
        self.chosen = [backbone.feature_strides.index(stride) for stride in strides]
        self.widths = tuple(backbone.feature_widths[k] for k in (self.chosen + self.chosen[-1:] * LEVELS)[:LEVELS])
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in self.widths)

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """See `Maps.forward`."""
        found = backbone.feature_maps(images)
        maps = [found[k].contiguous() for k in self.chosen]
        while len(maps) < LEVELS:
            maps.append(F.max_pool2d(maps[-1], 2))
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class Rescaled(Maps):
    """Maps of strides 4, 8, 16 and 32 of a plain ViT with patches of 16, made by transposed convolutions and pooling.

    Others begin as near to 4 px as at most four times their resolution can be. `taps` true takes each map from another
    depth; false takes all from the last block.
    """

    def __init__(self, backbone: Backbone, *, taps: bool, window: int | None, global_blocks: int) -> None:
        super().__init__()
        stride, width = backbone.feature_strides[-1], backbone.feature_widths[-1]
        self.blocks = PlainBlocks(backbone, TAPS if taps else (1.0,), window=window, global_blocks=global_blocks)
        doublings = min(2, max(0, round(math.log2(stride / _FINEST[0]))))
        self.strides = tuple(stride * 2.0 ** (k - doublings) for k in range(LEVELS))
        narrowed = [width if taps else width // 2**k for k in range(doublings + 1)]
        self.widths = tuple(narrowed[max(0, doublings - k)] for k in range(LEVELS))
        self.resize = nn.ModuleList(
            _finer(narrowed[: doublings - k + 1]) if k < doublings else _coarser(k - doublings) for k in range(LEVELS)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in self.widths)

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """See `Maps.forward`."""
        found = self.blocks(backbone, images)
        found = found * LEVELS if len(found) == 1 else found
        return [norm(resize(x)) for norm, resize, x in zip(self.norms, self.resize, found, strict=True)]


def _finer(widths: list[int]) -> nn.Module:
    """Twice the resolution for each step from one of `widths` to the next, a norm and GELU between two steps."""
    layers: list[nn.Module] = []
    for k, (width, new_width) in enumerate(pairwise(widths)):
        layers += [nn.GroupNorm(1, width), nn.GELU()] if k else []
        layers.append(nn.ConvTranspose2d(width, new_width, 2, 2))
    return nn.Sequential(*layers)


def _coarser(halvings: int) -> nn.Module:
    return nn.MaxPool2d(2**halvings) if halvings else nn.Identity()


def make_maps(backbone: Backbone, *, taps: bool, window: int | None, global_blocks: int) -> Maps:
    """The four maps of `backbone`; see this module's first lines.

    Raises ModelError for a backbone with neither maps whose strides double from 4 or 8 px on nor a single one, for
    images that these strides do not divide, and for windows where nothing attends.
    """
    strides = backbone.feature_strides
    if len(set(strides)) == 1:
        maps: Maps = Rescaled(backbone, taps=taps, window=window, global_blocks=global_blocks)
    elif doubling := _doubling(strides):
        if window is not None:
            raise ModelError(f"`objective.window` is for plain ViTs; {backbone.preset} has a pyramid of maps")
        maps = Pyramid(backbone, doubling)
    else:
        raise ModelError(
            f"{backbone.preset} has no feature maps for dense tasks: they need strides that double, or a single one, "
            f"and its are {tuple(strides)}"
        )
    coarsest = int(maps.strides[-1])
    if any(side % coarsest for side in backbone.image_size):
        height, width = backbone.image_size
        raise ModelError(f"`data.image_size`: {height}×{width} px do not divide by the coarsest stride, {coarsest}")
    return maps


def _doubling(strides: tuple[int, ...]) -> list[int]:
    """Up to four of `strides`, each twice the one before, from 4 or else 8 on; empty where there are not two."""
    for first in _FINEST:
        wanted = [first * 2**k for k in range(LEVELS)]
        found = [stride for stride in wanted if stride in strides]
        if len(found) > 1 and found == wanted[: len(found)]:
            return found
    return []
