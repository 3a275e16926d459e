"""Optimizers: what is trained how, the update rules, and what is done to gradients and weights around them."""

from isoflop.train.optim.agc import AdaptiveGradientClipping
from isoflop.train.optim.average import WeightAverage
from isoflop.train.optim.build import build_optimizer, set_rate
from isoflop.train.optim.groups import freeze, parameter_groups
from isoflop.train.optim.sharpness import uphill

__all__ = [
    "AdaptiveGradientClipping",
    "WeightAverage",
    "build_optimizer",
    "freeze",
    "parameter_groups",
    "set_rate",
    "uphill",
]
