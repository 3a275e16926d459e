"""Pre-activation ResNets with GroupNorm and standardised weights: BiT (arXiv 1912.11370), and ResNets of basic blocks,
these with BatchNorm and plain convolutions (arXiv 1603.05027), too.

Inside, maps are (batch, rows, columns, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone, outputs_of
from isoflop.models.layers import BatchNorm
from isoflop.models.operators import GroupNorm, group_norm_relu
from isoflop.models.standardised import PlainStandardisedConv


@dataclass(frozen=True)
class BiTConfig:
    """What there is to choose; the stages' widths are `factor`·`width`, and double from stage to stage.

    Attributes:
        depths: blocks per stage. factor: on all widths (R50x3: 3).
        weight_eps: of weight standardisation (timm: 1e-8).
        basic: blocks of two 3x3 convolutions (ResNet-18) and not bottlenecks, which are a quarter as wide inside.
        stem_stride: 4 is ImageNet's, 7x7 with stride 2 and max pooling; 1 and 2 are those of a 3x3 convolution.
        group_width: channels in a group of GroupNorm; 32 groups when left out.
        norm: "group", with standardised weights, or "batch", with plain ones.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    factor: int = 1
    weight_eps: float = 1e-10
    width: int = 256
    basic: bool = False
    stem_stride: int = 4
    group_width: int | None = None
    norm: str = "group"


class GroupNormReLU(GroupNorm):
    """GroupNorm, then ReLU."""

    def __init__(self, width: int, groups: int = 32) -> None:
        super().__init__(width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_relu(x, self.weight, self.bias, self.groups, self.eps)  # type: ignore[arg-type]


class BatchNormReLU(BatchNorm):
    """BatchNorm, then ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class PlainConv(nn.Conv2d):
    """A convolution without bias of maps (batch, rows, columns, width), with symmetric padding."""

    def __init__(self, width: int, new_width: int, kernel: int, stride: int = 1) -> None:
        super().__init__(width, new_width, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class BiTBlock(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions, or two of 3x3; norm and ReLU before each.

    The shortcut starts after the first ReLU where it is a convolution.
    """

    def __init__(self, config: BiTConfig, width: int, new_width: int, stride: int) -> None:
        super().__init__()
        conv = _conv(config)
        middle = new_width if config.basic else new_width // 4
        self.norm1 = _norm(config, width)
        self.conv1 = conv(width, middle, 3, stride) if config.basic else conv(width, middle, 1)
        self.norm2 = _norm(config, middle)
        self.conv2 = conv(middle, middle, 3) if config.basic else conv(middle, middle, 3, stride)
        if not config.basic:
            self.norm3 = _norm(config, middle)
            self.conv3 = conv(middle, new_width, 1)
        resized = stride > 1 or width != new_width
        self.shortcut = conv(width, new_width, 1, stride) if resized else None
        self.basic = config.basic

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(self.norm2(self.conv1(out)))
        total: Tensor = shortcut + (out if self.basic else self.conv3(self.norm3(out)))
        return total


def _conv(config: BiTConfig) -> Callable[..., nn.Conv2d]:
    return PlainConv if config.norm == "batch" else partial(PlainStandardisedConv, eps=config.weight_eps)


def _norm(config: BiTConfig, width: int) -> GroupNormReLU | BatchNormReLU:
    if config.norm not in ("group", "batch"):
        raise ModelError(f"`norm` is group or batch, not {config.norm}")
    if config.norm == "batch":
        return BatchNormReLU(width)
    groups = 32 if config.group_width is None else max(1, width // config.group_width)
    if width % groups:
        raise ModelError(f"a norm of {groups} groups does not divide {width} channels: see `width` and `group_width`")
    return GroupNormReLU(width, groups)


class BiT(Backbone):
    """The ResNet that a `BiTConfig` describes."""

    def __init__(self, config: BiTConfig, *, num_classes: int, image_size: tuple[int, int], in_channels: int) -> None:
        super().__init__()
        stride = config.stem_stride
        if stride not in (1, 2, 4):
            raise ModelError(f"`stem_stride` is 1, 2 or 4, not {stride}")
        if any(side % stride for side in image_size):
            raise ModelError(f"images of {image_size[0]}x{image_size[1]} pixels do not divide by the stem's {stride}")
        self.config = config
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.feature_widths = tuple(config.width * config.factor * 2**k for k in range(len(config.depths)))
        self.feature_strides = tuple(stride * 2**k for k in range(len(config.depths)))
        self.num_features = self.feature_widths[-1]
        width = self.feature_widths[0] // (1 if config.basic else 4)
        kernel, step = (7, 2) if stride == 4 else (3, stride)
        self.stem = _conv(config)(in_channels, width, kernel, step)
        self.stages = nn.ModuleList()
        for stage, (depth, new_width) in enumerate(zip(config.depths, self.feature_widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(BiTBlock(config, width, new_width, stride))
                width = new_width
            self.stages.append(nn.Sequential(*blocks))
        self.norm = _norm(config, width)
        self.head = nn.Linear(width, num_classes)
        _initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the maps are: else each use of a weight copies it

    def _stages(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images.contiguous(memory_format=torch.channels_last).movedim(1, -1))
        if self.config.stem_stride == 4:
            # Zeros around, then no padding in the pooling: not the same as padding the pooling, whose border is -inf.
            x = F.max_pool2d(_zeros_around(x).movedim(-1, 1), 3, 2).movedim(1, -1)
        return outputs_of(self.stages, x)

    def tokens(self, images: Tensor) -> Tensor:
        return self.norm(self._stages(images)[-1]).flatten(1, 2)  # type: ignore[no-any-return]

    def features(self, images: Tensor) -> Tensor:
        return self.tokens(images).mean(dim=1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return [x.movedim(-1, 1) for x in self._stages(images)]

    def layer_ids(self) -> dict[str, int]:
        starts = [sum(self.config.depths[:k]) for k in range(len(self.config.depths))]
        last = sum(self.config.depths) + 1
        ids = {}
        for name, _ in self.named_parameters():
            part, *rest = name.split(".")
            ids[name] = starts[int(rest[0])] + int(rest[1]) + 1 if part == "stages" else 0 if part == "stem" else last
        return ids


def _zeros_around(x: Tensor) -> Tensor:
    if torch.compiler.is_exporting():  # ONNX Runtime folds a Pad into the MaxPool behind it, whose border is -inf
        row = torch.zeros_like(x[:, :1])
        x = torch.cat([row, x, row], dim=1)
        column = torch.zeros_like(x[:, :, :1])
        return torch.cat([column, x, column], dim=2)
    return F.pad(x, (0, 0, 1, 1, 1, 1))


@torch.no_grad()
def _initialise(model: BiT) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    nn.init.zeros_(model.head.bias)  # type: ignore[arg-type]
