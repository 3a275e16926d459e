"""Sharpness-aware minimisation: the gradient is taken where the loss nearby is worst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from isoflop.train.shards import gradient_norm, local

PASSES = 2  # forward and backward, where a plain step takes one


@contextmanager
def uphill(parameters: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Weights moved by `radius` along their gradient, which is cleared; back in their place, bit for bit, at the end.

    A SAM step (arXiv 2010.01412, algorithm 1) is: gradients; `with uphill(...)`: gradients again; update. The gradient
    is the one of the global batch, whatever the number of devices.
    """
    moved = [(p, p.detach().clone(), p.grad) for p in parameters if p.grad is not None]
    with torch.no_grad():
        scale = radius / (gradient_norm(parameters) + 1e-12)
        for parameter, _, gradient in moved:
            local(parameter).add_(local(gradient) * scale)
            parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight, _ in moved:
                parameter.copy_(weight)
