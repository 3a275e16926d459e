"""A model and a mixer of one's own (docs/models.md): `examples/own_model.py:ConvNet`, `examples/own_model.py:Shift`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoflop.models import Backbone
from isoflop.models.mixers import Site


class ConvNet(Backbone):
    """Convolutions of stride 2, each twice as wide as the one before, and the mean over the map."""

    def __init__(
        self, *, num_classes: int, image_size: tuple[int, int], in_channels: int, width: int = 16, depth: int = 3
    ) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(depth)]
        layers = [
            nn.Sequential(nn.Conv2d(old, new, 3, stride=2, padding=1), nn.GroupNorm(1, new), nn.GELU())
            for old, new in zip([in_channels, *widths], widths, strict=False)
        ]
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images).mean(dim=(2, 3))

    # Only layer decay (`optim.layer_decay`) asks for this one.
    def layer_ids(self) -> dict[str, int]:
        last = len(self.layers) + 1
        return {name: int(name.split(".")[1]) if name.startswith("layers.") else last
                for name, _ in self.named_parameters()}  # fmt: skip


def large_conv_net(*, num_classes: int, image_size: tuple[int, int], in_channels: int) -> ConvNet:
    """A function will do as well: the next size of a family."""
    return ConvNet(num_classes=num_classes, image_size=image_size, in_channels=in_channels, width=24)


class Shift(nn.Module):
    """Quarters of the channels move one cell up, down, left and right (arXiv 2201.10801). No parameters, no FLOPs."""

    takes_sets = False  # needs the grid; True lets prefix tokens and masking in

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.quarter = site.width // 4

    def forward(self, x: Tensor) -> Tensor:  # (batch, rows, columns, width)
        up, down, left, right, rest = x.split([self.quarter] * 4 + [x.shape[-1] - 4 * self.quarter], dim=-1)
        moved = [up.roll(-1, 1), down.roll(1, 1), left.roll(-1, 2), right.roll(1, 2), rest]
        return torch.cat(moved, dim=-1)
