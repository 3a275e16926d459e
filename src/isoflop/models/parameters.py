"""The kind of each parameter, for weight decay, clipping and layer-wise rules.

Our modules declare it in a class attribute, `parameter_kinds = {"gamma": "scale"}`. PyTorch's modules are known by
their type, and parameters of timm's modules by their names. The number of dimensions is not used: an NFNet's gain of
shape (C, 1, 1, 1) is a gain, a token of shape (1, 1, D) a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Kind = Literal["kernel", "bias", "gain", "scale", "position", "token"]
"""kernel: a matrix or a convolution. bias: added to an output. gain: the factor of a norm or of standardised weights.
scale: a learnt factor anywhere else (LayerScale, SkipInit, StarReLU). position: a table of places. token: a vector that
stands beside those of an image (class, distillation, mask; the probe of attention pooling)."""

Kinds = Mapping[str, Kind]
VECTORS: frozenset[Kind] = frozenset({"bias", "gain", "scale"})
"""One unit as a whole, whatever its shape."""

_PRODUCT: Kinds = {"weight": "kernel", "bias": "bias"}
_NORM: Kinds = {"weight": "gain", "bias": "bias"}
_ATTENTION: Kinds = {
    **dict.fromkeys(("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), "kernel"),
    "in_proj_bias": "bias",
    **dict.fromkeys(("bias_k", "bias_v"), "token"),
}
_BY_TYPE: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Kinds], ...] = (
    ((nn.Linear, nn.Bilinear, _ConvNd), _PRODUCT),
    ((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase), _NORM),
    ((nn.Embedding, nn.EmbeddingBag), {"weight": "token"}),
    (nn.MultiheadAttention, _ATTENTION),
    (nn.PReLU, {"weight": "scale"}),
)
_BY_NAME: tuple[tuple[str, Kind], ...] = (  # the first that fits
    (
        r".*(pos(ition)?_?(embed|enc|emb)|rel_pos|relative_position).*|.*_pos|positions?|attention_biases|\w+_rel",
        "position",
    ),
    (r"(.*_)?(token|query|queries|probe|latent)s?\w*|cls.*", "token"),
    (r"bias.*|.*_bias|beta\w*|b\d*", "bias"),
    (r"gain", "gain"),
    (r"gamma\w*|.*scale.*|.*_gain|alpha\w*|temperature|gating_param|lambda\w*|weights|ls\d*|A|D", "scale"),
)
_NORMS_BY_NAME = re.compile(r".*(norm|bn|affine).*", re.IGNORECASE)


def parameter_kinds(model: nn.Module) -> dict[str, Kind]:
    """What each parameter of `model` is, by the name that `named_parameters` gives it."""
    seen: dict[int, Kind] = {}
    found: dict[str, Kind] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            kind = seen.setdefault(id(parameter), _kind(model, module, prefix, name.rpartition(".")[2]))
            found[name] = kind
    return {name: found[name] for name, _ in model.named_parameters()}


def _kind(model: nn.Module, module: nn.Module, prefix: str, name: str) -> Kind:
    for known in (
        getattr(module, "parameter_kinds", {}),
        *(own for types, own in _BY_TYPE if isinstance(module, types)),
    ):
        if name in known:
            return known[name]
    if isinstance(module, nn.ParameterList | nn.ParameterDict):  # says nothing: who holds it knows what its entries are
        above, _, held = prefix.rpartition(".")
        return _kind(model, model.get_submodule(above), above, held)
    if name == "weight" and _NORMS_BY_NAME.fullmatch(type(module).__name__):
        return "gain"
    return next((kind for pattern, kind in _BY_NAME if re.fullmatch(pattern, name)), "kernel")


def shapes_by_head(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes that the kernels of attention have where every head has its own, as in Flax: of a projection to heads
    (parts, heads, head width, in), of that back (out, heads, head width).

    A module says it by `split_by_head`: the parts of each of its linear maps (3 of a fused qkv), 0 for the way back.
    """
    found: dict[str, tuple[int, ...]] = {}
    for prefix, module in model.named_modules():
        for name, parts in getattr(module, "split_by_head", {}).items():
            out, width = module.get_submodule(name).weight.shape
            heads = module.heads
            key = f"{prefix}.{name}.weight".removeprefix(".")
            found[key] = (parts, heads, out // parts // heads, width) if parts else (out, heads, width // heads)
    return found
