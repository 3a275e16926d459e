"""Adaptive gradient clipping (AGC), which networks without normalisation need at large batches and rates; and SAM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from isoflop.models.parameters import VECTORS, parameter_kinds
from isoflop.train.optim.build import of_classifier, plain_name
from isoflop.train.sharded import gradient_norm, local, unit_norms


class AdaptiveGradientClipping:
    """Rescales a unit's gradient when its norm exceeds λ · max(‖W‖, 1e-3) (AGC, arXiv 2102.06171, eq. 3).

    Units are output channels of a kernel; biases, gains and scales are one unit each, whatever their shape, also where
    they lie in pieces on several ranks. The classifier's kernel is left alone. Its bias is not: the paper spares "the
    final linear layer", but the code that its results come from (nfnets/experiment_nfnets.py, `_make_opt`) clips the
    bias like every other one. Call it between `backward` and `step`.
    """

    def __init__(self, model: nn.Module, clipping: float, eps: float = 1e-3) -> None:
        kinds, is_head = parameter_kinds(model), of_classifier(model)
        clipped = [
            (p, kinds[name] in VECTORS)
            for name, p in model.named_parameters()
            if p.requires_grad and not (is_head(plain_name(name)) and kinds[name] == "kernel")
        ]
        self.parameters, self.are_vectors = [p for p, _ in clipped], [is_vector for _, is_vector in clipped]
        self.clipping = clipping
        self.eps = eps

    @torch.no_grad()
    def __call__(self) -> None:
        every = zip(self.parameters, self.are_vectors, strict=True)
        found = [(p, p.grad, is_vector) for p, is_vector in every if p.grad is not None]
        vectors = [is_vector for _, _, is_vector in found]
        weights = unit_norms([parameter for parameter, _, _ in found], vectors)
        gradients = unit_norms([gradient for _, gradient, _ in found], vectors)
        torch._foreach_clamp_min_(weights, self.eps)
        torch._foreach_mul_(weights, self.clipping)
        torch._foreach_clamp_min_(gradients, 1e-6)
        torch._foreach_div_(weights, gradients)
        torch._foreach_clamp_max_(weights, 1.0)
        torch._foreach_mul_([local(gradient) for _, gradient, _ in found], weights)


# Sharpness-aware minimisation: the gradient is taken where the loss nearby is worst.


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
