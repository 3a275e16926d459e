"""From a configuration to an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from isoflop.config import OptimConfig
from isoflop.train.optim.adafactor import Adafactor
from isoflop.train.optim.groups import parameter_groups
from isoflop.train.optim.lamb import Lamb
from isoflop.train.optim.lars import Lars
from isoflop.train.optim.muon import MuonAdamW
from isoflop.train.shards import is_sharded

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    nesterov = config.nesterov and config.momentum > 0
    fused = not any(is_sharded(p) for group in groups for p in group["params"])  # which PyTorch has not for DTensors
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=fused)


def _adafactor(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    momentum, cap = config.betas
    return Adafactor(groups, lr=config.learning_rate, momentum=momentum, beta2_cap=cap)


def _lamb(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lamb(groups, lr=config.learning_rate, betas=config.betas)


def _lars(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lars(groups, lr=config.learning_rate, momentum=config.momentum)


def _muon(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return MuonAdamW(groups, lr=config.learning_rate, momentum=config.momentum, betas=config.betas)


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,  # arXiv 1711.05101
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "lars": _lars,
    "muon": _muon,
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`; ConfigError as `parameter_groups`."""
    return OPTIMIZERS[config.name](parameter_groups(model, config), config)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of this step, in each group times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
