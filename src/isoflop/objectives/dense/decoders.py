"""What joins the four maps of a backbone into one of the finest resolution.

With GroupNorm, which looks at one picture at a time. The libraries' decoders have BatchNorm inside, which makes a step
depend on how its batch is divided over devices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

_POOLED = (1, 2, 3, 6)  # sides of the maps that UperNet's pyramid pooling looks at


class SemanticFPN(nn.Module):
    """A feature pyramid whose levels are enlarged step by step and added (arXiv 1901.02446, figure 3).

    Attributes: `width` of the map that comes out, half that of the pyramid.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = max(1, width // 2)
        self.pyramid = FeaturePyramidNetwork(list(widths), width)
        self.steps = nn.ModuleList(
            nn.ModuleList(convolution(width if k == 0 else self.width, self.width, 3) for k in range(max(1, level)))
            for level in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The map (batch, width, rows, columns) of the resolution of the first of `maps`."""
        levels = self.pyramid(OrderedDict((str(k), x) for k, x in enumerate(maps))).values()
        joined: list[Tensor] = []
        for level, (x, steps) in enumerate(zip(levels, self.steps, strict=True)):
            for step in steps:  # type: ignore[attr-defined]
                x = step(x)
                if level:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            joined.append(x)
        return torch.stack(joined).sum(dim=0)


class UperNet(nn.Module):
    """Pyramid pooling of the coarsest map, then a feature pyramid whose levels are put side by side (arXiv 1807.10221).

    Attributes: `width` of the map that comes out.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.pooled = nn.ModuleList(convolution(widths[-1], width, 1) for _ in _POOLED)
        self.bottleneck = convolution(widths[-1] + len(_POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(convolution(own, width, 1) for own in widths[:-1])
        self.smooth = nn.ModuleList(convolution(width, width, 3) for _ in widths[:-1])
        self.join = convolution(len(widths) * width, width, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The map (batch, width, rows, columns) of the resolution of the first of `maps`."""
        last = maps[-1]
        views = [
            _as_large_as(last, step(F.adaptive_avg_pool2d(last, side)))
            for side, step in zip(_POOLED, self.pooled, strict=True)
        ]
        x = self.bottleneck(torch.cat([last, *views], dim=1))
        levels = [x]
        for own, lateral in zip(reversed(maps[:-1]), reversed(self.lateral), strict=True):
            own = lateral(own)
            x = own + _as_large_as(own, x)
            levels.append(x)
        finest = levels[-1]
        smoothed = [smooth(level) for smooth, level in zip(reversed(self.smooth), levels[1:], strict=True)]
        joined: Tensor = self.join(torch.cat([_as_large_as(finest, level) for level in (levels[0], *smoothed)], dim=1))
        return joined


def convolution(width: int, new_width: int, kernel: int) -> nn.Sequential:
    """A convolution with GroupNorm and ReLU after it."""
    groups = next(count for count in (32, 16, 8, 4, 2, 1) if new_width % (2 * count) == 0 or count == 1)
    return nn.Sequential(
        nn.Conv2d(width, new_width, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(groups, new_width),
        nn.ReLU(inplace=True),
    )


def _as_large_as(reference: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)
