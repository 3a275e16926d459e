"""What moved to `isoflop.train.optim`."""

from isoflop.train.optim import AdaptiveGradientClipping, build_optimizer, parameter_groups

__all__ = ["AdaptiveGradientClipping", "build_optimizer", "parameter_groups"]
