"""Small networks and gradients that the tests of optimizers share."""

import torch
from torch import nn

from isoflop.config import OptimConfig
from isoflop.models import create_model
from isoflop.objectives import Supervised
from isoflop.train.optim import build_optimizer, set_rate

NAMES = ("adamw", "sgd", "adafactor", "lamb", "lars", "muon")


def small_network() -> nn.Module:
    """A convolution, a matrix with both sides above 32, vectors, and a head."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("conv", nn.Conv2d(3, 8, 3))
    network.add_module("flat", nn.Flatten())
    network.add_module("hidden", nn.Linear(8 * 36, 40))
    network.add_module("head", nn.Linear(40, 5))
    return network


def small_vit() -> Supervised:
    return Supervised(create_model("vit_w64d4p8", num_classes=10, image_size=32, in_channels=3, seed=0))


def fill_gradients(model: nn.Module, scale: float, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def optim(**keys: object) -> OptimConfig:
    return OptimConfig.model_validate({"learning_rate": 0.05, "weight_decay": 0.1, **keys})


def train_some(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rate: float = 0.05) -> None:
    for step in steps:
        fill_gradients(model, 1.0 / (1 + step), seed=step)
        set_rate(optimizer, rate)
        optimizer.step()


def optimizer_of(model: nn.Module, **keys: object) -> torch.optim.Optimizer:
    return build_optimizer(model, optim(**keys))
