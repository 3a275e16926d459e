"""Names that authors' releases have: MAE, PoolFormer, the MetaFormer baselines; each as timm calls the same tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

MAE_DECODER = re.compile(r"(decoder_|mask_token)")


def is_poolformer(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the PoolFormer release (arXiv 2111.11418)."""
    return "network.0.0.mlp.fc1.weight" in names


def is_baseline(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the MetaFormer baselines' release (arXiv 2210.13452)."""
    return "downsample_layers.0.conv.weight" in names


def without_decoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder of a masked autoencoder, whose names are timm's, and the names of what was only for pretraining."""
    left_out = [name for name in state if MAE_DECODER.match(name)]
    return {name: tensor for name, tensor in state.items() if not MAE_DECODER.match(name)}, left_out


def from_poolformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`network` holds stages, what leads from one to the next, and before some stages their positions."""
    places: dict[str, str] = {}
    stage = 0
    for number in sorted({int(match[1]) for match in map(re.compile(r"network\.(\d+)\.").match, state) if match}):
        if f"network.{number}.proj.weight" in state:
            stage += 1
            places[str(number)] = f"stages.{stage}.downsample."
        else:
            is_table = f"network.{number}.pos_embed" in state
            places[str(number)] = f"stages.{stage}." + ("" if is_table else "blocks.")

    def place(match: re.Match[str]) -> str:
        return places[match[1]]

    out = {}
    for name, tensor in state.items():
        new = re.sub(r"^network\.(\d+)\.", place, name)
        new = re.sub(r"\.downsample\.proj\.", ".downsample.conv.", new)
        new = re.sub(r"^patch_embed\.proj\.", "stem.conv.", new)
        new = re.sub(r"\.layer_scale_(\d)$", r".layer_scale\1.scale", new)
        table = new.endswith(".pos_embed")  # (1, width, rows, columns)
        out[_with_head(new)] = tensor.flatten(2).transpose(1, 2) if table else tensor
    return out


def from_baseline(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Downsampling stands apart from the stages, with its norm in front, but for the stem's."""
    out = {}
    for name, tensor in state.items():
        new = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        new = re.sub(r"^downsample_layers\.0\.", "stem.", new)
        new = re.sub(r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample.", new)
        new = re.sub(r"\.(pre|post)_norm\.", ".norm.", new)
        out[_with_head(new)] = tensor
    return out


def _with_head(name: str) -> str:
    return re.sub(r"^norm\.", "head.norm.", re.sub(r"^head\.", "head.fc.", name))
