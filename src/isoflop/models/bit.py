"""BiT: a pre-activation ResNet with GroupNorm and standardised weights (arXiv 1912.11370).

Inside, maps are (batch, rows, columns, width).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.operators import GroupNorm, group_norm_relu
from isoflop.models.standardised import PlainStandardisedConv


@dataclass(frozen=True)
class BiTConfig:
    """Blocks per stage, the factor on all widths (R50x3: 3), and the eps of weight standardisation (timm: 1e-8)."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    factor: int = 1
    weight_eps: float = 1e-10


class GroupNormReLU(GroupNorm):
    """GroupNorm with 32 groups, then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 32)

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_relu(x, self.weight, self.bias, self.groups, self.eps)  # type: ignore[arg-type]


class BiTBlock(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions, norm and ReLU before each; the shortcut starts after the first ReLU."""

    def __init__(self, width: int, new_width: int, stride: int, eps: float) -> None:
        super().__init__()
        middle = new_width // 4
        self.norm1 = GroupNormReLU(width)
        self.conv1 = PlainStandardisedConv(width, middle, 1, eps=eps)
        self.norm2 = GroupNormReLU(middle)
        self.conv2 = PlainStandardisedConv(middle, middle, 3, stride, eps=eps)
        self.norm3 = GroupNormReLU(middle)
        self.conv3 = PlainStandardisedConv(middle, new_width, 1, eps=eps)
        resized = stride > 1 or width != new_width
        self.shortcut = PlainStandardisedConv(width, new_width, 1, stride, eps=eps) if resized else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(out)))))
        total: Tensor = shortcut + out
        return total


class BiT(Backbone):
    """The ResNet that a `BiTConfig` describes."""

    def __init__(self, config: BiTConfig, *, num_classes: int, image_size: tuple[int, int], in_channels: int) -> None:
        super().__init__()
        if any(side % 4 for side in image_size):
            raise ModelError(f"images of {image_size[0]}x{image_size[1]} pixels do not divide by the stem's 4")
        self.config = config
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.feature_widths = tuple(256 * config.factor * 2**k for k in range(len(config.depths)))
        self.feature_strides = tuple(4 * 2**k for k in range(len(config.depths)))
        self.num_features = self.feature_widths[-1]
        width = 64 * config.factor
        self.stem = PlainStandardisedConv(in_channels, width, 7, 2, eps=config.weight_eps)
        self.stages = nn.ModuleList()
        for stage, (depth, new_width) in enumerate(zip(config.depths, self.feature_widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(BiTBlock(width, new_width, stride, config.weight_eps))
                width = new_width
            self.stages.append(nn.Sequential(*blocks))
        self.norm = GroupNormReLU(width)
        self.head = nn.Linear(width, num_classes)
        _initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the maps are: else each use of a weight copies it

    def _stages(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images.contiguous(memory_format=torch.channels_last).movedim(1, -1))
        # Zeros around, then no padding in the pooling: not the same as padding the pooling, whose border is -inf.
        x = F.max_pool2d(_zeros_around(x).movedim(-1, 1), 3, 2).movedim(1, -1)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

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
