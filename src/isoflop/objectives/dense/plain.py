"""The maps inside a plain ViT, and attention in windows, whose cost grows with the pixels alone.

Windows are put around the mixer and not around the block, so that the rest of the block, stochastic depth included,
sees whole pictures. They are hooks: no weight changes its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.blocks import Block
from isoflop.models.metaformer import MetaFormer
from isoflop.models.mixers import Attention
from isoflop.models.timm_adapter import TimmBackbone


class PlainBlocks(nn.Module):
    """The outputs of some blocks of a plain ViT as maps (batch, width, rows, columns).

    Args:
        shares: of the depth, at which outputs are taken.
        window: side in tokens of the windows; with it, prefix tokens take no part, as in ViTDet.
        global_blocks: blocks that attend to everything all the same, the last of as many equal parts of the depth.

    Raises ModelError where `backbone` cannot do so.
    """

    def __init__(self, backbone: Backbone, shares: Sequence[float], *, window: int | None, global_blocks: int) -> None:
        super().__init__()
        if isinstance(backbone, TimmBackbone):
            depth = len(backbone.model.feature_info)
        elif isinstance(backbone, MetaFormer):
            depth = backbone.config.depths[0]
        else:
            raise ModelError(f"{backbone.preset} hands out a single feature map and nothing before it")
        self.taps = [max(1, round(share * depth)) - 1 for share in shares]
        self.is_windowed = window is not None
        if window is None:
            return
        if not isinstance(backbone, MetaFormer) or set(backbone.config.mixers) != {"attention"}:
            raise ModelError(f"`objective.window`: {backbone.preset} is no plain ViT of ours")
        ends = {round((k + 1) * depth / global_blocks) - 1 for k in range(global_blocks)}
        for index, block in enumerate(_blocks(backbone)):
            if index not in ends:
                put_windows(block.mixer, window)

    def forward(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """One map for each tap."""
        distinct = sorted(set(self.taps))  # of a shallow network, some are the same
        if isinstance(backbone, TimmBackbone):
            found = backbone.model.forward_intermediates(
                images, indices=distinct, intermediates_only=True, output_fmt="NCHW"
            )
            return [found[distinct.index(tap)] for tap in self.taps]
        assert isinstance(backbone, MetaFormer)
        x = backbone.embed(images)
        batch, rows, columns, width = x.shape
        prefix = 0 if self.is_windowed else backbone.config.prefix_tokens
        if prefix:
            x = torch.cat([backbone.prefix.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(_blocks(backbone)):
            x = block(x)
            if index in distinct:
                cells = x[:, prefix:].reshape(batch, rows, columns, width) if prefix else x
                outputs[index] = cells.movedim(-1, 1)
        return [outputs[tap] for tap in self.taps]


def _blocks(backbone: MetaFormer) -> list[Block]:
    return [block for block in backbone.stages[0].modules() if isinstance(block, Block)]


def put_windows(mixer: nn.Module, size: int) -> None:
    """Has `mixer` see maps (batch, rows, columns, width) in windows of `size` × `size`, zeros at the end."""
    if not isinstance(mixer, Attention):
        raise ModelError("only attention can be given windows")

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        batch, rows, columns, width = x.shape
        module._map = (batch, rows, columns)  # type: ignore[assignment]  # the size to come back to
        x = F.pad(x, (0, 0, 0, -columns % size, 0, -rows % size))
        x = x.view(batch, x.shape[1] // size, size, x.shape[2] // size, size, width)
        return (x.transpose(2, 3).reshape(-1, size, size, width),)

    def after(module: Any, inputs: tuple[Tensor], x: Tensor) -> Tensor:
        batch, rows, columns = module._map
        down, across = -(-rows // size), -(-columns // size)
        x = x.view(batch, down, across, size, size, -1).transpose(2, 3)
        return x.reshape(batch, down * size, across * size, -1)[:, :rows, :columns]

    mixer.register_forward_pre_hook(before)
    mixer.register_forward_hook(after)
