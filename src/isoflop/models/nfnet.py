"""NFNet: a ResNet without normalisation (arXiv 2102.06171).

Activations keep their scale because weights are standardised, every branch divides its input by the expected standard
deviation, and every nonlinearity is rescaled to unit variance. Inside, maps are (batch, rows, columns, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone, outputs_of
from isoflop.models.blocks import Dropout, drop_path
from isoflop.models.operators import Linear
from isoflop.models.parameters import Kinds
from isoflop.models.standardised import StandardisedConv

# 1 / the standard deviation of act(z) for z ~ N(0, 1) (arXiv 2101.08692, section 3.2).
# The authors' GELU is the tanh form (JAX's default), timm's the exact one; their gain is the same.
GELU_GAIN = 1.7015043497085571
ACTIVATION_GAIN = {"gelu": GELU_GAIN, "gelu_tanh": GELU_GAIN, "relu": 1.7139588594436646, "silu": 1.7881293296813965}
ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class NFNetConfig:
    """What there is to choose; tuples have one entry per stage, `stem_*` one per stem convolution.

    `weight_eps` is added to the variance of weights before they are standardised: 0 in the paper, 1e-5 in timm.
    Stochastic depth is at `drop_path`·k/N in block k of N and leaves the kept branches as they are, as in the authors'
    code; with `scale_by_keep`, it is `drop_path` in the last block, and divides by the probability of being kept.
    """

    depths: tuple[int, ...] = (1, 2, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_widths: tuple[int, ...] = (16, 32, 64, 128)
    stem_strides: tuple[int, ...] = (2, 1, 1, 2)
    final_width: int = 3072
    group_width: int = 128
    bottleneck: float = 0.5
    squeeze: float = 0.5
    activation: str = "gelu_tanh"
    alpha: float = 0.2
    drop_path: float = 0.25
    scale_by_keep: bool = False
    dropout: float = 0.2
    weight_eps: float = 0.0


class SqueezeExcite(nn.Module):
    """2·sigmoid(W₂ relu(W₁ mean(x))) as a factor per channel; the 2 keeps the branch's variance near one."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """The factors (batch, 1, 1, width) for a map (batch, rows, columns, width)."""
        gate: Tensor = self.fc2(F.relu(self.fc1(x.mean(dim=(1, 2))))).sigmoid()
        return gate[:, None, None, :] * 2


class NFBlock(nn.Module):
    """out = shortcut + α·gain·branch(β·act(x)): bottleneck, two grouped 3x3 convolutions, squeeze-excite."""

    parameter_kinds: ClassVar[Kinds] = {"skip_gain": "scale"}

    def __init__(
        self, config: NFNetConfig, width: int, new_width: int, stride: int, expected_std: float, drop_rate: float
    ) -> None:
        super().__init__()
        middle = int(new_width * config.bottleneck)
        groups = max(1, middle // config.group_width)
        if middle % groups:
            groups = 1  # F4+ and F7+: 192 is no multiple of 128; one group gives the published size
        self.activation, self.drop_rate, self.scale_by_keep = config.activation, drop_rate, config.scale_by_keep
        self.beta, self.alpha, self.stride = 1 / expected_std, config.alpha, stride
        eps = config.weight_eps
        resized = stride > 1 or width != new_width
        self.shortcut = StandardisedConv(width, new_width, 1, eps=eps) if resized else None
        self.conv1 = StandardisedConv(width, middle, 1, eps=eps)
        self.conv2 = StandardisedConv(middle, middle, 3, stride, groups, eps=eps)
        self.conv3 = StandardisedConv(middle, middle, 3, 1, groups, eps=eps)
        self.conv4 = StandardisedConv(middle, new_width, 1, eps=eps)
        self.squeeze_excite = SqueezeExcite(new_width, int(new_width * config.squeeze))
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        act, gain = ACTIVATION[self.activation], ACTIVATION_GAIN[self.activation]
        out = act(x)
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(_halved(out) if self.stride > 1 else out, gain * self.beta)
        out = act(self.conv1(out, gain * self.beta))
        out = act(self.conv2(out, gain))
        out = self.conv4(act(self.conv3(out, gain)), gain)
        # One factor per image and channel: squeeze-excite, stochastic depth, SkipInit gain and α.
        factor = self.squeeze_excite(out) * (self.skip_gain * self.alpha)
        return torch.addcmul(shortcut, out, drop_path(factor, self.drop_rate, self.training, self.scale_by_keep))


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 cells of a map (batch, rows, columns, width), smaller ones at an odd border."""
    return F.avg_pool2d(x.movedim(-1, 1), 2, ceil_mode=True, count_include_pad=False).movedim(1, -1)


class NFNet(Backbone):
    """The normalizer-free ResNet that an `NFNetConfig` describes."""

    def __init__(self, config: NFNetConfig, *, num_classes: int, image_size: tuple[int, int], in_channels: int) -> None:
        super().__init__()
        stride = math.prod(config.stem_strides)
        if any(side % stride for side in image_size):
            raise ModelError(f"images of {image_size[0]}x{image_size[1]} pixels do not divide by the stem's {stride}")
        for together in (("depths", "widths", "strides"), ("stem_widths", "stem_strides")):
            counts = [len(getattr(config, field)) for field in together]
            if len(set(counts)) > 1 or not counts[0]:
                fields = ", ".join(f"`{field}`" for field in together)
                raise ModelError(f"{fields} need equally many entries, not {', '.join(map(str, counts))}")
        if config.activation not in ACTIVATION:
            raise ModelError(f"`activation` is one of {', '.join(ACTIVATION)}, not {config.activation!r}")
        if min(config.widths) * min(config.bottleneck, config.squeeze) < 1:
            raise ModelError(f"`widths` = {config.widths} are too narrow for `bottleneck` and `squeeze`")
        self.config = config
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.num_features = config.final_width
        self.feature_widths = config.widths
        self.feature_strides = tuple(stride * math.prod(config.strides[: k + 1]) for k in range(len(config.widths)))
        widths = (in_channels, *config.stem_widths)
        self.stem = nn.ModuleList(
            StandardisedConv(widths[k], widths[k + 1], 3, step, eps=config.weight_eps)
            for k, step in enumerate(config.stem_strides)
        )
        width = widths[-1]
        count = sum(config.depths)
        rates = torch.linspace(0, config.drop_path, count + (not config.scale_by_keep), device="cpu").tolist()
        self.stages = nn.ModuleList()
        expected_std = 1.0
        for new_width, depth, step in zip(config.widths, config.depths, config.strides, strict=True):
            blocks = []
            for index in range(depth):
                first = index == 0
                blocks.append(NFBlock(config, width, new_width, step if first else 1, expected_std, rates.pop(0)))
                # A stage's first shortcut is a convolution of a normalised input, so the variance starts again at 1.
                expected_std = math.sqrt((1.0 if first else expected_std**2) + config.alpha**2)
                width = new_width
            self.stages.append(nn.Sequential(*blocks))
        self.final = StandardisedConv(width, config.final_width, 1, eps=config.weight_eps)
        self.dropout = Dropout(config.dropout)
        self.head = Linear(config.final_width, num_classes)
        _initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the maps are: else each use of a weight copies it

    def _stages(self, images: Tensor) -> list[Tensor]:
        act, gain = ACTIVATION[self.config.activation], ACTIVATION_GAIN[self.config.activation]
        x = images.contiguous(memory_format=torch.channels_last).movedim(1, -1)
        for index, conv in enumerate(self.stem):
            x = conv(x) if index == 0 else conv(act(x), gain)
        return outputs_of(self.stages, x)

    def tokens(self, images: Tensor) -> Tensor:
        act, gain = ACTIVATION[self.config.activation], ACTIVATION_GAIN[self.config.activation]
        return act(self.final(self._stages(images)[-1])).flatten(1, 2) * gain

    def features(self, images: Tensor) -> Tensor:
        return self.tokens(images).mean(dim=1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return [x.movedim(-1, 1) for x in self._stages(images)]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits

    def layer_ids(self) -> dict[str, int]:
        starts = [sum(self.config.depths[:k]) for k in range(len(self.config.depths))]
        last = sum(self.config.depths) + 1
        ids = {}
        for name, _ in self.named_parameters():
            part, *rest = name.split(".")
            ids[name] = starts[int(rest[0])] + int(rest[1]) + 1 if part == "stages" else 0 if part == "stem" else last
        return ids


@torch.no_grad()
def _initialise(model: NFNet) -> None:
    for module in model.modules():
        if isinstance(module, StandardisedConv):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):  # Haiku's default: cut at two σ, and not widened for it
            std = 1 / math.sqrt(module.in_features)
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.head.weight, std=0.01)  # type: ignore[arg-type]
