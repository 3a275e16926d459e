"""What a backbone costs: parameters and multiply-adds, counted on the meta device, where no size takes memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.create import create_model


@dataclass(frozen=True)
class Cost:
    """Cost of one image. `macs` are multiply-adds of a forward pass; a FLOP is half of one everywhere in isoflop.

    `frozen_macs` are those of what runs forward only, in training alone: a teacher.
    """

    parameters: int
    macs: int
    frozen_macs: int = 0

    @property
    def flops(self) -> int:
        """FLOPs of one forward pass: 2 · macs."""
        return 2 * self.macs

    @property
    def train_flops_per_image(self) -> int:
        """FLOPs of one training step per image: forward, and twice that for the gradients of what is trained."""
        return 3 * self.flops + 2 * self.frozen_macs


def cost(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    **overrides: Any,
) -> Cost:
    """Parameters and MACs per image of `create_model` with the same arguments; ModelError as there."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    size = image_size if isinstance(image_size, int) else (image_size[0], image_size[1])
    return _counted(name, num_classes, size, in_channels, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=1024)
def _counted(
    name: str,
    num_classes: int,
    image_size: int | tuple[int, int],
    in_channels: int,
    overrides: tuple[tuple[str, Any], ...],
) -> Cost:
    with torch.device("meta"):
        model = create_model(
            name, num_classes=num_classes, image_size=image_size, in_channels=in_channels, **dict(overrides)
        ).eval()
        images = torch.empty(1, in_channels, *model.image_size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(images)
    return Cost(sum(p.numel() for p in model.parameters() if p.requires_grad), counter.get_total_flops() // 2)
