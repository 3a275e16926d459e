"""Initialisation of weights, as in each paper."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from isoflop.models.mixers import GatedMLP


def lecun_normal(weight: Tensor) -> None:
    """Truncated normal with variance 1/fan_in, as flax's default: cut at two σ and widened to keep the variance."""
    std = 1 / math.sqrt(weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@torch.no_grad()
def vit(model: nn.Module) -> None:
    """ViT (arXiv 2010.11929, big_vision): xavier matrices, lecun patches, MLP biases of 1e-6, a head of zeros."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            lecun_normal(module.weight)
            _zero(module.bias)
        elif isinstance(module, nn.Linear):
            # Query, key and value are fused, but each keeps the bound of its own square matrix.
            parts = 3 if name.endswith(".qkv") else 2 if name.endswith(".kv") else 1
            bound = math.sqrt(6 / (module.in_features + module.out_features // parts))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None and ".mlp." in name:
                nn.init.normal_(module.bias, std=1e-6)
            else:
                _zero(module.bias)
        if isinstance(module, nn.Linear) and name.startswith("head"):
            if name == "head.fc1":  # `pre_logits`, with flax's default
                lecun_normal(module.weight)
            else:
                nn.init.zeros_(module.weight)
            _zero(module.bias)


@torch.no_grad()
def mae(model: nn.Module) -> None:
    """MAE (arXiv 2111.06377, authors' code): xavier, the fused query, key and value as the one matrix that they are.

    So are the patches, flattened; their bias keeps PyTorch's default. The class token is N(0, 0.02), the head zeros.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            _zero(module.bias)
    for name, parameter in model.named_parameters():
        if name == "prefix":
            nn.init.normal_(parameter, std=0.02)
        elif name.startswith("head"):
            parameter.zero_()


@torch.no_grad()
def trunc_normal(model: nn.Module, kinds: tuple[type[nn.Linear | nn.Conv2d], ...] = (nn.Linear,)) -> None:
    """Truncated normal of σ 0.02 and zero biases; convolutions keep PyTorch's default (DeiT, ResMLP, PVT, Swin)."""
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=0.02)
            _zero(module.bias)
    for name, parameter in model.named_parameters():
        if (name.startswith("positions.") and parameter.requires_grad) or name == "prefix":
            nn.init.trunc_normal_(parameter, std=0.02)


@torch.no_grad()
def poolformer(model: nn.Module) -> None:
    """As `trunc_normal`, with positions that start at zero (PoolFormer and its hybrids, arXiv 2111.11418)."""
    trunc_normal(model)
    for name, parameter in model.named_parameters():
        if name.startswith("positions."):
            parameter.zero_()


def metaformer(model: nn.Module) -> None:
    """As `trunc_normal`, convolutions as well (MetaFormer baselines, arXiv 2210.13452)."""
    trunc_normal(model, (nn.Linear, nn.Conv2d))


@torch.no_grad()
def lecun(model: nn.Module) -> None:
    """Lecun normal, zero biases and a head of zeros (MLP-Mixer, gMLP); gMLP's gates start as the constant one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            lecun_normal(module.weight)
            _zero(module.bias)
        if isinstance(module, nn.Linear) and name.startswith("head"):
            nn.init.zeros_(module.weight)
    for module in model.modules():
        if isinstance(module, GatedMLP):
            nn.init.normal_(module.gate.weight, std=1e-6)
            nn.init.ones_(module.gate.bias)


@torch.no_grad()
def pvt(model: nn.Module) -> None:
    """As `metaformer`, but convolutions are He normal over their outputs (PVT v2, arXiv 2106.13797)."""
    metaformer(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


INITIALISERS: dict[str, Callable[[nn.Module], None]] = {
    "vit": vit,
    "mae": mae,
    "trunc_normal": trunc_normal,
    "poolformer": poolformer,
    "metaformer": metaformer,
    "lecun": lecun,
    "pvt": pvt,
}
