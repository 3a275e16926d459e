"""ViTs of big_vision and of AugReg (vit_jax): `.npz` archives of Flax's arrays.

Both have the same names up to the counters of their modules. Kernels are (in, out), those of attention keep heads
apart, convolutions are (rows, columns, in, out); in `Transformer/encoderblock/` the arrays of all blocks are stacked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from isoflop.models.interop.rules import Rules, rules

BLOCK = "Transformer/encoderblock_{0}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
MAP = "MAPHead_0"
VIT = rules(f"""
    stem.conv.*            -> embedding/{{*}}
    stages.0.#.norm1.*     -> {BLOCK}/LayerNorm_0/{{*}}
    stages.0.#.mixer.qkv.* -> {ATTENTION}/query/{{*}} + {ATTENTION}/key/{{*}} + {ATTENTION}/value/{{*}}
    stages.0.#.mixer.proj.* -> {ATTENTION}/out/{{*}}
    stages.0.#.norm2.*     -> {BLOCK}/LayerNorm_1/{{*}}
    stages.0.#.mlp.fc1.*   -> {BLOCK}/MlpBlock_0/Dense_0/{{*}}
    stages.0.#.mlp.fc2.*   -> {BLOCK}/MlpBlock_0/Dense_1/{{*}}
    norm.*                 -> Transformer/encoder_norm/{{*}}
    pool.probe             -> {MAP}/probe
    pool.q.*               -> {MAP}/MultiHeadDotProductAttention_0/query/{{*}}
    pool.kv.*              -> {MAP}/MultiHeadDotProductAttention_0/key/{{*}} + {MAP}/MultiHeadDotProductAttention_0/value/{{*}}
    pool.proj.*            -> {MAP}/MultiHeadDotProductAttention_0/out/{{*}}
    pool.norm.*            -> {MAP}/LayerNorm_0/{{*}}
    pool.mlp.fc1.*         -> {MAP}/MlpBlock_0/Dense_0/{{*}}
    pool.mlp.fc2.*         -> {MAP}/MlpBlock_0/Dense_1/{{*}}
    head.fc1.*             -> pre_logits/{{*}}
    head.fc2.*             -> head/{{*}}
    head.*                 -> head/{{*}}
""")  # noqa: E501
FLAX: dict[str, Rules] = dict.fromkeys(("vit", "mae", "deit"), VIT)

# Older or other counters and places of the same arrays.
RENAMED = (
    (r"^(opt/target/|params/)(img/)?", ""),
    (r"/posembed_input/pos_embedding$", "/pos_embedding"),
    (r"^Transformer/pos_embedding$", "pos_embedding"),
    (r"^(Transformer/encoderblock\w*/)MultiHeadDotProductAttention_\d/", r"\1MultiHeadDotProductAttention_0/"),
    (r"^(Transformer/encoderblock\w*/)MlpBlock_\d/", r"\1MlpBlock_0/"),
    (r"^(Transformer/encoderblock\w*/)LayerNorm_2/", r"\1LayerNorm_1/"),
    (r"^(probe|MlpBlock_0/|MultiHeadDotProductAttention_0/|LayerNorm_0/)", r"MAPHead_0/\1"),
    (r"/(kernel|scale)$", "/weight"),
)


def from_flax(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays under one set of names, `kernel` and `scale` called `weight`, with PyTorch's order of axes."""
    out: dict[str, Tensor] = {}
    for given, tensor in state.items():
        name = given
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if name.startswith("Transformer/encoderblock/"):
            for index, part in enumerate(tensor):
                own = name.replace("encoderblock", f"encoderblock_{index}", 1)
                out[own] = _turned(own, part)
        else:
            out[name] = _turned(name, tensor)
    return out


def heads_of(state: Mapping[str, Tensor]) -> int | None:
    """Attention heads, which only the arrays as they are stored tell."""
    for name, tensor in state.items():
        if name.endswith("/query/bias"):
            return int(tensor.shape[-2])
    return None


def _turned(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if not name.endswith("/weight"):
        return tensor.reshape(-1) if name.endswith("/bias") else tensor
    if name == "embedding/weight":
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.ndim == 3:  # (in, heads, width of a head), or (heads, width of a head, out)
        tensor = tensor.flatten(0, 1) if "/out/" in name else tensor.flatten(1)
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor
