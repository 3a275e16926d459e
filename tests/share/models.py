"""Small trained-looking backbones in folders."""

from pathlib import Path
from typing import Any

import torch

from isoflop.models import Backbone, create_model
from isoflop.models.saved import describe_model, save_model

MOMENTS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def shaken(model: torch.nn.Module) -> Any:
    """`model` with every vector moved off its start, so that no parameter is without effect, ready to be evaluated."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator)
            if parameter.ndim <= 1 or parameter.shape[:2] == (1, 1):
                parameter.add_(0.3 * noise + 0.1)
            elif not parameter.any():
                parameter.add_(0.04 * (noise - 0.5))
    return model.eval()


def saved(folder: Path, preset: str, size: int, **options: Any) -> Backbone:
    """The model of that name for five classes, in the new `folder`."""
    model: Backbone = shaken(create_model(preset, image_size=size, num_classes=5, seed=0, **options))
    folder.mkdir(parents=True)
    names = ("ant", "bee", "cow", "dog", "elk")
    save_model(folder, model.state_dict(), describe_model(model, options, moments=MOMENTS, class_names=names))
    return model


def images(size: int, count: int = 3, channels: int = 3) -> torch.Tensor:
    """Normalised images."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def relative(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """The largest difference, as a share of the largest output."""
    return ((theirs - ours).abs().max() / ours.abs().max()).item()
