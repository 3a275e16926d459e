"""What an optimizer remembers, in bytes, without building it."""

from __future__ import annotations

import math

from torch import nn

from isoflop.config import OptimizerConfig
from isoflop.train.optim.adafactor import factored_axes
from isoflop.train.optim.groups import parameter_groups

FLOAT32, BFLOAT16 = 4, 2


def state_bytes(model: nn.Module, config: OptimizerConfig) -> int:
    """Bytes of optimizer state for the trainable parameters of `model`, which may be on the meta device.

    Step counters, of a few bytes a parameter, are left out; a running average of the weights is counted.
    """
    total = 0
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            count = parameter.numel()
            if config.name == "adafactor":
                total += BFLOAT16 * count + FLOAT32 * _second_moment(group["factored_as"] or parameter.shape)
            else:
                total += FLOAT32 * count * _copies(config, group["is_hidden_matrix"])
            if config.average is not None:
                total += FLOAT32 * count
    return total


def _copies(config: OptimizerConfig, is_hidden_matrix: bool) -> int:
    if config.name in ("sgd", "lars"):
        return int(config.momentum > 0)
    return 1 if config.name == "muon" and is_hidden_matrix else 2


def _second_moment(shape: tuple[int, ...]) -> int:
    count, axes = math.prod(shape), factored_axes(shape)
    return count if axes is None else sum(count // shape[axis] for axis in axes)
