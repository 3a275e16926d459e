"""Optimizers: which parameters decay, the update rules, and adaptive gradient clipping."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoflop.config import OptimConfig

HEADS = ("head", "backbone.head")  # where the classifier is, in a backbone and in an objective


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two optimizer groups, decayed and not: vectors (biases, norms, gains) and the model's own list do not decay."""
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    decay: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (rest if parameter.ndim <= 1 or name in spared else decay).append(parameter)
    groups: list[dict[str, object]] = [{"params": decay, "weight_decay": weight_decay}]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    return groups


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over `model`: AdamW (arXiv 1711.05101) or SGD with Nesterov momentum, both fused."""
    groups = parameter_groups(model, config.weight_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def unit_norm(tensor: Tensor) -> Tensor:
    """The norm of each output unit, shaped to broadcast against `tensor`; of the whole tensor when it is a vector."""
    axes = tuple(range(1, tensor.ndim)) or None
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=axes is not None)
    return norm


class AdaptiveGradientClipping:
    """Rescales a unit's gradient when its norm exceeds λ · max(‖W‖, 1e-3) (AGC, arXiv 2102.06171, eq. 3).

    Units are output channels; a vector is one unit. The classifier is left alone, as in the paper. Call it between
    `backward` and `step`.
    """

    def __init__(self, model: nn.Module, clipping: float, eps: float = 1e-3) -> None:
        classifier = {id(p) for name, head in model.named_modules() if name in HEADS for p in head.parameters()}
        self.parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in classifier]
        self.clipping = clipping
        self.eps = eps

    @torch.no_grad()
    def __call__(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            limit = unit_norm(parameter).clamp_(min=self.eps).mul_(self.clipping)
            norm = unit_norm(parameter.grad).clamp_(min=1e-6)
            parameter.grad.mul_((limit / norm).clamp_(max=1.0))
