"""Semantic segmentation: a class for every pixel, by a decoder on the maps of any backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from isoflop.config import SegmentConfig
from isoflop.data.dense.objects import IGNORED
from isoflop.models import Backbone
from isoflop.models.blocks import Dropout
from isoflop.objectives.dense.detector import freeze_unused
from isoflop.objectives.dense.maps import make_maps
from isoflop.objectives.supervised import Objective, Uniforms

# What joins the four maps of a backbone into one of the finest resolution.
#
# With GroupNorm, which looks at one picture at a time. The libraries' decoders have BatchNorm inside, which makes a
# step
# depend on how its batch is divided over devices.


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


class Segmenter(Objective):
    """Tells the class of every pixel by cross-entropy; pixels of class 255 teach nothing.

    Raises ModelError as `make_maps`.
    """

    def __init__(self, backbone: Backbone, config: SegmentConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        freeze_unused(backbone)
        is_upernet = config.head == "upernet"
        self.maps = make_maps(backbone, taps=is_upernet, window=config.window, global_blocks=config.global_blocks)
        self.decoder = (
            UperNet(self.maps.widths, config.width or 512)
            if is_upernet
            else SemanticFPN(self.maps.widths, config.width or 256)
        )
        self.classifier = nn.Sequential(ChannelDropout(config.dropout), nn.Conv2d(self.decoder.width, num_classes, 1))
        self.auxiliary: nn.Module | None = None
        if is_upernet and config.auxiliary:
            middle = 256 if self.decoder.width >= 256 else self.decoder.width
            self.auxiliary = nn.Sequential(
                convolution(self.maps.widths[2], middle, 3),
                ChannelDropout(config.dropout),
                nn.Conv2d(middle, num_classes, 1),
            )

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`; `labels` are maps (B, H, W)."""
        maps = self.maps(self.backbone, images)
        logits = self.classifier(self.decoder(maps))
        if images.is_meta:  # its cost is being counted
            total: Tensor = logits.sum() + (self.auxiliary(maps[2]).sum() if self.auxiliary is not None else 0)
            return total
        loss = pixel_loss(logits, labels)
        if self.auxiliary is not None:
            loss = loss + self.config.auxiliary * pixel_loss(self.auxiliary(maps[2]), labels)
        return loss

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the images of the loss, and of the share of pixels told right (`accuracy`)."""
        logits = self.logits(images)
        told, counts = logits.argmax(dim=1), labels != IGNORED
        right = ((told == labels) & counts).flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1)
        return {"loss": pixel_loss(logits, labels).double() * len(images), "accuracy": right.sum().double()}

    def logits(self, images: Tensor) -> Tensor:
        """Of each class and pixel, float32 (B, classes, H, W), for normalised images (B, C, H, W)."""
        logits = self.classifier(self.decoder(self.maps(self.backbone, images)))
        return enlarged(logits, images.shape[-2:])


class ChannelDropout(nn.Module):
    """Whole channels of a picture's map zeroed at `rate` and the rest scaled up, as before mmsegmentation's classifiers
    (arXiv 1411.4280, section 3.2)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.draw = Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw(x.new_ones(*x.shape[:2], 1, 1)) if self.training else x


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy in nats of `labels` (B, H, W), summed over the pixels that count and divided by the number of
    all, as in mmsegmentation: a mean over the others would depend on which pictures share a batch."""
    logits = enlarged(logits, labels.shape[-2:])
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum") / labels.numel()


def enlarged(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits (B, classes, rows, columns) at the size of the pixels, bilinear, float32."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
