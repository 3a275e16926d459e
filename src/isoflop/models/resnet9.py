"""ResNet-9: the residual network of DAWNBench's fastest scripts on CIFAR-10 (David Page, *How to Train Your ResNet*).

BatchNorm, ReLU after each convolution, max pooling between the stages and before the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone, outputs_of

LOGIT_SCALE = 0.125


@dataclass(frozen=True)
class ResNet9Config:
    """What there is to choose.

    Attributes:
        width: channels after the first convolution, and an eighth of the features; DAWNBench's is 64.
        stem_stride: a power of two; each halving is a convolution more, so that larger images come to 32 px.
        depths: residual blocks of each of the three stages, behind its convolution.
    """

    width: int = 64
    stem_stride: int = 1
    depths: tuple[int, ...] = (1, 0, 1)


def _conv(width: int, new_width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, new_width, 3, stride, 1, bias=False), nn.BatchNorm2d(new_width), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two convolutions of x, each with BatchNorm and ReLU behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class ResNet9(Backbone):
    """The ResNet-9 that a `ResNet9Config` describes."""

    def __init__(
        self, config: ResNet9Config, *, num_classes: int, image_size: tuple[int, int], in_channels: int
    ) -> None:
        super().__init__()
        stride, width = config.stem_stride, config.width
        if stride not in (1, 2, 4, 8, 16):
            raise ModelError(f"`stem_stride` is a power of two up to 16, not {stride}")
        if any(side % (8 * stride) for side in image_size):
            raise ModelError(f"images of {image_size[0]}x{image_size[1]} pixels do not divide by {8 * stride}")
        self.config = config
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        if len(config.depths) != 3:
            raise ModelError(f"`depths` are of three stages, not {len(config.depths)}")
        self.feature_strides = tuple(stride * 2**k for k in (1, 2, 3))
        self.feature_widths = tuple(width * 2**k for k in (1, 2, 3))
        self.num_features = 8 * width
        halvings = [_conv(width if k else in_channels, width, 2) for k in range(round(log2(stride)))]
        self.stem = nn.Sequential(*halvings, _conv(width if halvings else in_channels, width))
        self.stages = nn.ModuleList()
        for depth, new_width in zip(config.depths, self.feature_widths, strict=True):
            blocks = [Residual(new_width) for _ in range(depth)]
            self.stages.append(nn.Sequential(_conv(new_width // 2, new_width), nn.MaxPool2d(2), *blocks))
        self.head = nn.Linear(8 * width, num_classes, bias=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        return outputs_of(self.stages, x)

    def tokens(self, images: Tensor) -> Tensor:
        return LOGIT_SCALE * self.feature_maps(images)[-1].flatten(2).transpose(1, 2)

    def features(self, images: Tensor) -> Tensor:
        return LOGIT_SCALE * self.feature_maps(images)[-1].amax(dim=(2, 3))

    def layer_ids(self) -> dict[str, int]:
        """What stands before a residual block counts as a part of it."""
        last, ids = sum(self.config.depths), {}
        for name, _ in self.named_parameters():
            part, stage, *rest = name.split(".")
            if part == "stages":
                before = sum(self.config.depths[: int(stage)])
                ids[name] = min(before + max(int(rest[0]) - 1, 1), last)  # behind a convolution and its pooling
            else:
                ids[name] = 0 if part == "stem" else last + 1
        return ids
