"""Adaptive gradient clipping: what keeps networks without normalisation stable at large batches and rates."""

from __future__ import annotations

import torch
from torch import nn

from isoflop.train.optim.groups import of_classifier, plain_name
from isoflop.train.shards import local, unit_norms


class AdaptiveGradientClipping:
    """Rescales a unit's gradient when its norm exceeds λ · max(‖W‖, 1e-3) (AGC, arXiv 2102.06171, eq. 3).

    Units are output channels; a vector is one unit, also where it lies in pieces on several ranks. The classifier is
    left alone, as in the paper. Call it between `backward` and `step`.
    """

    def __init__(self, model: nn.Module, clipping: float, eps: float = 1e-3) -> None:
        named, is_head = model.named_parameters(), of_classifier(model)
        self.parameters = [p for name, p in named if p.requires_grad and not is_head(plain_name(name))]
        self.clipping = clipping
        self.eps = eps

    @torch.no_grad()
    def __call__(self) -> None:
        found = [(p, p.grad) for p in self.parameters if p.grad is not None]
        weights = unit_norms([parameter for parameter, _ in found])
        gradients = unit_norms([gradient for _, gradient in found])
        for (_, gradient), weight, length in zip(found, weights, gradients, strict=True):
            limit = weight.clamp_(min=self.eps).mul_(self.clipping)
            local(gradient).mul_((limit / length.clamp_(min=1e-6)).clamp_(max=1.0))
