"""What a run costs in FLOPs."""

from __future__ import annotations

from isoflop.config import RunConfig
from isoflop.objectives import objective_cost
from isoflop.train.optim.sharpness import PASSES


def train_flops_per_image(config: RunConfig, num_classes: int, channels: int) -> float:
    """Training FLOPs of one image: 3 × forward (2 × MACs), twice that with sharpness-aware minimisation."""
    counted = objective_cost(
        config.objective,
        config.model.name,
        num_classes=num_classes or 1,
        image_size=config.data.image_size,
        in_channels=channels,
        **config.model.overrides,
    )
    return float(counted.train_flops_per_image) * (PASSES if config.optim.sam else 1)
