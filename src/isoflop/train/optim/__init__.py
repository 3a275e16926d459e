"""Optimizers: parameter groups, update rules, gradient clipping, EMA of the weights."""

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
