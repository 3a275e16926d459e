"""Optimizers: what is trained how, the update rules, and what is done to gradients and weights around them."""

from isoflop.train.optim.build import build_optimizer, freeze, parameter_groups, set_rate
from isoflop.train.optim.ema import WeightAverage
from isoflop.train.optim.gradients import AdaptiveGradientClipping, uphill

__all__ = [
    "AdaptiveGradientClipping",
    "WeightAverage",
    "build_optimizer",
    "freeze",
    "parameter_groups",
    "set_rate",
    "uphill",
]
