"""The light Transformer that predicts hidden patches from encoded visible ones, and is thrown away afterwards."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from isoflop.models.blocks import Block
from isoflop.models.layers import LayerNorm
from isoflop.models.linear import Linear
from isoflop.models.mixers import Site
from isoflop.models.parameters import Kinds
from isoflop.models.positions import sincos_2d


class LastBlock(Block):
    """A plain block that is computed only where it is looked at."""

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """The tokens from `first` on, as `Block` makes them of all tokens `x` (batch, tokens, width)."""
        x = x[:, first:] + self.mixer(self.norm1(x), first)
        assert self.mlp is not None
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Decoder(nn.Module):
    """MAE's decoder (arXiv 2111.06377, section 3): a mask token for every hidden patch, fixed positions, plain blocks.

    It needs no particular order of patches, so visible ones stay first, and the last block and the prediction leave
    them out: nothing looks at what would become of them. `depth` is at least 1.
    """

    parameter_kinds: ClassVar[Kinds] = {"mask_token": "token", "positions": "position"}

    def __init__(
        self, grid: tuple[int, int], width_in: int, width_out: int, *, depth: int, width: int, heads: int
    ) -> None:
        super().__init__()
        self.embed = Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(sincos_2d(grid, width, "sincos_mae")[None], requires_grad=False)
        site = Site(width=width, grid=grid, heads=heads)
        self.blocks = nn.Sequential(
            *(
                (Block if block < depth - 1 else LastBlock)(
                    "attention",
                    site,
                    mlp_width=4 * width,
                    norm="layer",
                    norm_eps=1e-6,
                    mlp_bias=True,
                    mlp_depthwise=False,
                    channel_mlp=True,
                    residual=True,
                    layer_scale=None,
                    res_scale=None,
                    drop_rate=0.0,
                )
                for block in range(depth)
            )
        )
        self.norm = LayerNorm(width)
        self.predict = Linear(width, width_out)
        _initialise(self)

    def forward(self, tokens: Tensor, order: Tensor, visible: int) -> Tensor:
        """Predictions (batch, hidden, width_out) of the hidden patches, in the order of `order`.

        Args:
            tokens: encoded prefix tokens and visible patches (batch, prefix + visible, width_in).
            order: all patches (batch, rows · columns), the visible ones first, in the order of `tokens`.
        """
        x = self.embed(tokens)
        prefix = x.shape[1] - visible
        places = self.positions[0][order].to(x.dtype)
        hidden = self.mask_token.to(x.dtype) + places[:, visible:]
        x = torch.cat([x[:, :prefix], x[:, prefix:] + places[:, :visible], hidden], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        predicted: Tensor = self.predict(self.norm(last(x, prefix + visible)))
        return predicted


@torch.no_grad()
def _initialise(decoder: Decoder) -> None:
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(decoder.mask_token, std=0.02)
