"""One skeleton for the whole Transformer branch: x + mixer(norm(x)), then x + mlp(norm(x)), in stages.

ViT, PoolFormer and their relatives are rows of `presets.py` over this file (MetaFormer, arXiv 2111.11418, fig. 1).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.blocks import Block, Downsample, Patches, PatchMerging
from isoflop.models.heads import MapPool, MLPHead, TanhHead
from isoflop.models.initialise import INITIALISERS
from isoflop.models.layers import NORMS
from isoflop.models.metaformer_config import MetaFormerConfig, check, grids
from isoflop.models.mixers import SET_MIXERS, Site
from isoflop.models.parameters import Kinds
from isoflop.models.positions import SINCOS, sincos_2d


class MetaFormer(Backbone):
    """The backbone that a `MetaFormerConfig` describes. Inside, maps are (batch, rows, columns, width)."""

    parameter_kinds: ClassVar[Kinds] = {"positions": "position", "prefix": "token"}

    def __init__(
        self, config: MetaFormerConfig, *, num_classes: int, image_size: tuple[int, int], in_channels: int
    ) -> None:
        super().__init__()
        check(config, image_size)
        self.config = config
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.num_features = config.widths[-1]
        self.feature_widths = config.widths
        self.feature_strides = tuple(config.stem_stride * 2**k for k in range(len(config.widths)))
        self.grids = grids(config, image_size)
        self.stem = Patches(
            in_channels, config.widths[0], config.stem_kernel, config.stem_stride, config.stem_padding, config.stem_norm
        )
        self.downsamples = nn.ModuleList(
            PatchMerging(width, new)
            if config.patch_merging
            else Downsample(
                width, new, config.down_kernel, config.down_padding, config.down_norm, config.down_norm_after
            )
            for width, new in zip(config.widths, config.widths[1:], strict=False)
        )
        self.positions = self._positions()
        if config.prefix_tokens:
            self.prefix = nn.Parameter(torch.zeros(1, config.prefix_tokens, config.widths[-1]))
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        self.stages = nn.ModuleList(self._stage(stage, rates) for stage in range(len(config.depths)))
        self.stage_norms = nn.ModuleList(
            NORMS[config.norm](width, config.norm_eps) for width in config.widths[:-1] if config.stage_norms
        )
        self.norm = NORMS[config.last_norm or config.norm](self.num_features, config.last_norm_eps or config.norm_eps)
        if config.pool == "map":
            self.pool = MapPool(self.num_features, config.heads[-1], config.mlp_widths[-1], config.activation)
        if config.mlp_head:
            self.head = MLPHead(self.num_features, num_classes, config.head_eps, config.dropout)
        elif config.representation_size:
            self.head = TanhHead(self.num_features, config.representation_size, num_classes)
        else:
            self.head = nn.Linear(self.num_features, num_classes)
        if config.distilled:
            self.head_distilled = nn.Linear(self.num_features, num_classes)
        INITIALISERS[config.init](self)

    def _positions(self) -> nn.ParameterList | list[None]:
        config = self.config
        if config.positions == "none":
            return [None] * len(self.grids)
        tables: list[nn.Parameter | None] = []
        fixed = config.positions in SINCOS
        for stage, (grid, width) in enumerate(zip(self.grids, config.widths, strict=True)):
            if config.position_stages is not None and stage not in config.position_stages:
                tables.append(None)
            elif fixed:
                tables.append(nn.Parameter(sincos_2d(grid, width, config.positions)[None], requires_grad=False))
            else:
                tables.append(nn.Parameter(torch.randn(1, grid[0] * grid[1], width) / math.sqrt(width)))
        return nn.ParameterList(tables)

    def _stage(self, stage: int, drop_rates: list[float]) -> nn.Sequential:
        config = self.config
        blocks = []
        for index in range(config.depths[stage]):
            site = Site(
                width=config.widths[stage],
                grid=self.grids[stage],
                heads=config.heads[stage],
                hidden=config.mixer_widths[stage] if config.mixer_widths else config.mlp_widths[stage],
                bias=config.mixer_bias,
                qkv_bias=config.qkv_bias,
                qk_norm=config.qk_norm,
                pool_size=config.pool_size,
                kernel_size=config.kernel_size,
                reduction=config.reductions[stage] if config.reductions else 1,
                window=config.window,
                shift=config.window // 2 if index % 2 else 0,
                activation=config.activation,
            )
            block = Block(
                config.mixers[stage],
                site,
                mlp_width=config.mlp_widths[stage],
                norm=config.norm,
                norm_eps=config.norm_eps,
                mlp_bias=config.mlp_bias,
                mlp_depthwise=config.mlp_depthwise,
                channel_mlp=config.channel_mlp,
                residual=config.residual,
                layer_scale=config.layer_scale,
                res_scale=config.res_scale[stage] if config.res_scale else None,
                drop_rate=drop_rates.pop(0),
            )
            blocks.append(block)
        return nn.Sequential(*blocks)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The stem's cells with their positions added (batch, rows, columns, width); no prefix tokens yet.

        With `keep` (batch, kept) of cell indices, these alone, in that order (batch, kept, width).
        """
        if tuple(images.shape[1:]) != (self.in_channels, *self.image_size):
            raise ModelError(
                f"this model takes images of {(self.in_channels, *self.image_size)} (channels, height, width), "
                f"not {tuple(images.shape[1:])}"
            )
        if keep is None:
            return self._placed(self.stem(images), 0)
        cells: Tensor = self.stem(images, keep)
        table = self.positions[0]
        return cells if table is None else cells + table[0][keep]

    def _placed(self, x: Tensor, stage: int) -> Tensor:
        table = self.positions[stage]
        return x if table is None else x + table.view(1, *self.grids[stage], -1)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, the last not yet normalised; there, prefix tokens come first if there are any."""
        outputs: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            if index:
                x = self._placed(self.downsamples[index - 1](x), index)
            if self.config.prefix_tokens and index == len(self.stages) - 1:
                x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x.flatten(1, -2)], dim=1)
            x = stage(x)
            if index < len(self.stage_norms):
                x = self.stage_norms[index](x)
            outputs.append(x)
        return outputs

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised last tokens (batch, prefix + count, num_features).

        With `keep` (batch, kept) of patch indices, only these patches are embedded and encoded, in that order, at their
        positions (masked autoencoding, arXiv 2111.06377). Models of one stage only.
        """
        takes_sets = len(self.stages) == 1 and set(self.config.mixers) <= SET_MIXERS and not self.config.mlp_depthwise
        if keep is not None and not takes_sets:
            raise ModelError("only a model of one stage whose mixer takes any set of tokens can leave patches out")
        return self.normalised(self.pyramid(self.embed(images, keep))[-1]).flatten(1, -2)

    def normalised(self, x: Tensor) -> Tensor:
        """The last norm, where it belongs to the tokens and not to their mean."""
        out: Tensor = x if self.config.pool_first else self.norm(x)
        return out

    def features(self, images: Tensor) -> Tensor:
        return self.pooled(self.tokens(images))

    def pooled(self, tokens: Tensor) -> Tensor:
        """One vector (batch, num_features) from the tokens that `tokens` returns."""
        if self.config.pool == "map":
            out: Tensor = self.pool(tokens)
            return out
        if self.config.pool == "token":
            return tokens[:, 0]
        mean = tokens[:, self.config.prefix_tokens :].mean(dim=1)
        if self.config.pool_first:
            mean = self.norm(mean)
        return mean

    def forward(self, images: Tensor) -> Tensor:
        if not self.config.distilled:
            return super().forward(images)
        one, two = self.distilled_logits(images)
        return (one + two) / 2

    def distilled_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class token and of the distillation token (DeiT, arXiv 2012.12877), for a model with both."""
        if not self.config.distilled:
            raise ModelError(f"{self.preset} has no distillation token")
        tokens = self.tokens(images)
        return self.head(tokens[:, 0]), self.head_distilled(tokens[:, 1])

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        maps = self.pyramid(self.embed(images))
        prefix = self.config.prefix_tokens
        maps[-1] = maps[-1].flatten(1, -2)[:, prefix:].reshape(len(images), *self.grids[-1], self.num_features)
        return [x.movedim(-1, 1) for x in maps]

    def layer_ids(self) -> dict[str, int]:
        starts = [sum(self.config.depths[:k]) for k in range(len(self.config.depths))]
        last = sum(self.config.depths) + 1
        ids = {}
        for name, _ in self.named_parameters():
            part, *rest = name.split(".")
            if part == "stages":
                ids[name] = starts[int(rest[0])] + int(rest[1]) + 1
            elif part in ("downsamples", "stage_norms"):
                ids[name] = starts[int(rest[0]) + 1] + 1
            elif part == "positions":
                ids[name] = starts[int(rest[0])] + (rest[0] != "0")
            elif part == "prefix":
                ids[name] = starts[-1] + (len(starts) > 1)
            else:
                ids[name] = 0 if part == "stem" else last
        return ids
