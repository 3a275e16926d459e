"""Four maps of any backbone, each half as fine as the one before: what detectors and segmenters look at.

A pyramid has them. A plain ViT has one resolution, of which finer and coarser maps are made: all from its last map, the
simple feature pyramid of ViTDet (arXiv 2203.16527, section 3), or from taps at ¼, ½, ¾ and the whole of its depth, as
UperNet wants them (BEiT, arXiv 2106.08254, appendix E).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.objectives.dense.plain import PlainBlocks

LEVELS = 4
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
    """Maps at 4, 2, 1 and ½ times the resolution of a plain ViT, made by transposed convolutions and pooling.

    `taps` true takes each from another depth; false takes all from the last block.
    """

    def __init__(self, backbone: Backbone, *, taps: bool, window: int | None, global_blocks: int) -> None:
        super().__init__()
        stride, width = backbone.feature_strides[-1], backbone.feature_widths[-1]
        shares = (0.25, 0.5, 0.75, 1.0) if taps else (1.0,)
        self.blocks = PlainBlocks(backbone, shares, window=window, global_blocks=global_blocks)
        self.widths = (width // 4, width // 2, width, width) if not taps else (width,) * LEVELS
        self.strides = tuple(stride * factor for factor in (0.25, 0.5, 1.0, 2.0))
        half, quarter = self.widths[1], self.widths[0]
        middle = half if not taps else width
        self.resize = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, middle, 2, 2),
                    nn.GroupNorm(1, middle),
                    nn.GELU(),
                    nn.ConvTranspose2d(middle, quarter, 2, 2),
                ),
                nn.ConvTranspose2d(width, half, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in self.widths)

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """See `Maps.forward`."""
        found = self.blocks(backbone, images)
        found = found * LEVELS if len(found) == 1 else found
        return [norm(resize(x)) for norm, resize, x in zip(self.norms, self.resize, found, strict=True)]


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
