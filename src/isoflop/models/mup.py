"""μP: initialisation and learning rates by width, so that one learning rate is suitable for all widths.

Maximal update parametrisation for Adam (arXiv 2203.03466, table 3: the form without multipliers), relative to a base
width, at which nothing changes. With r the fan-in divided by that of the base:

    matrices of which both sides grow (hidden)  σ ∝ 1/√r    rate / r
    only the fan-in grows (output)              σ ∝ 1/r     rate / r
    only the fan-out grows (input), vectors     σ as base   rate

Shapes are compared with those of the same network at the base width. Attention keeps 1/√d, because the number of heads
of the presets grows, not their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.metaformer import MetaFormer


@dataclass(frozen=True)
class WidthScale:
    """Of a parameter: `fan_in` over that of the base where it is a matrix over the width (1 for all others), and what
    its start is multiplied by."""

    fan_in: float = 1.0
    start: float = 1.0


def width_scales(model: Backbone, base: int) -> dict[str, WidthScale]:
    """The scale of every parameter of `model` by name, for a first stage of `base` channels at the base.

    Raises ModelError for a backbone that is not of the MetaFormer grammar, or has no such base.
    """
    if not isinstance(model, MetaFormer):
        raise ModelError(
            f"{model.preset}: width transfer (`optim.mup`) is defined for the MetaFormer grammar with AdamW, not for "
            f'{model.family}; give that family `optim.mup = "none"`'
        )
    small = _at_width(model, base)
    scales = {name: WidthScale() for name, _ in model.named_parameters()}
    for name, module, other in _matrices(model, small):
        scales[f"{name}.weight"] = _scale(module, other, name, model.config.init)
        if isinstance(module, nn.Conv2d) and module.bias is not None:  # PyTorch's default draws it as the weights
            ratio = _deviation(other, name, model.config.init) / _deviation(module, name, model.config.init)
            scales[f"{name}.bias"] = WidthScale(start=ratio)
    if model.config.positions == "learned" and model.config.init in ("vit", "mae", "lecun"):  # drawn with 1/√width
        for name, parameter in model.named_parameters():
            if name.startswith("positions."):
                ratio = parameter.shape[-1] / small.get_parameter(name).shape[-1]
                scales[name] = WidthScale(start=math.sqrt(ratio))
    return scales


@torch.no_grad()
def scale_start(model: Backbone, base: int) -> None:
    """Multiplies the fresh weights of `model` as μP wants them; ModelError as `width_scales`."""
    parameters = dict(model.named_parameters())
    for name, scale in width_scales(model, base).items():
        if scale.start != 1.0:
            parameters[name].mul_(scale.start)


def _at_width(model: MetaFormer, base: int) -> MetaFormer:
    """The network of `model` whose first stage has `base` channels, without memory."""
    config = model.config
    ratio = base / config.widths[0]

    def scaled(widths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, round(width * ratio)) for width in widths)

    tokens = ("token_mlp", "token_linear")  # whose hidden widths are of tokens
    grows = config.mixer_widths is not None and not set(config.mixers) & set(tokens)
    config = replace(
        config,
        widths=scaled(config.widths),
        mlp_widths=scaled(config.mlp_widths),
        mixer_widths=scaled(config.mixer_widths) if grows and config.mixer_widths else config.mixer_widths,
        heads=(1,) * len(config.heads),
    )
    with torch.device("meta"):
        return MetaFormer(
            config, num_classes=model.num_classes, image_size=model.image_size, in_channels=model.in_channels
        )


Matrix = nn.Linear | nn.Conv2d


def _matrices(model: nn.Module, small: nn.Module) -> Iterator[tuple[str, Matrix, Matrix]]:
    others = dict(small.named_modules())
    for name, module in model.named_modules():
        other = others[name]
        if isinstance(module, Matrix) and isinstance(other, Matrix):
            yield name, module, other


def _scale(module: Matrix, other: Matrix, name: str, init: str) -> WidthScale:
    out_ratio, in_ratio = (module.weight.shape[k] / other.weight.shape[k] for k in (0, 1))
    if in_ratio == 1.0:
        wanted, fan_in = 1.0, 1.0
    else:
        wanted, fan_in = (in_ratio**-0.5 if out_ratio != 1.0 else 1 / in_ratio), in_ratio
    return WidthScale(fan_in, wanted / (_deviation(module, name, init) / _deviation(other, name, init)))


def _deviation(module: Matrix, name: str, init: str) -> float:
    """What `init` draws the weights of `module` with, up to a factor (models/initialise.py)."""
    weight = module.weight
    fan_in = weight[0].numel()
    if init == "lecun" or (init in ("vit", "trunc_normal", "poolformer") and isinstance(module, nn.Conv2d)):
        return 1 / math.sqrt(fan_in)
    if init == "mae":  # the fused query, key and value as one matrix
        return 1 / math.sqrt(fan_in + weight.shape[0])
    if init == "vit":
        parts = 3 if name.endswith(".qkv") else 2 if name.endswith(".kv") else 1
        return 1 / math.sqrt(weight.shape[1] + weight.shape[0] // parts)
    if init == "pvt" and isinstance(module, nn.Conv2d):
        return 1 / math.sqrt(weight[0, 0].numel() * module.out_channels / module.groups)
    return 1.0
