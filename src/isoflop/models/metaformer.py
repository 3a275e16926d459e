"""The MetaFormer: x + mixer(norm(x)), then x + mlp(norm(x)), in stages.

ViT, PoolFormer and their relatives are rows of `presets.py` for this module (MetaFormer, arXiv 2111.11418, fig. 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from isoflop.config.run import is_code
from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone, MapPool, MLPHead, TanhHead
from isoflop.models.blocks import Block, Downsample, Patches, PatchMerging
from isoflop.models.initialise import INITIALISERS
from isoflop.models.layers import ACTIVATIONS, NORMS, SINCOS, sincos_2d
from isoflop.models.mixers import MIXERS, Site, takes_sets
from isoflop.models.parameters import Kinds

# What a MetaFormer can be: its options, which of them go together, and the maps that they lead to.


@dataclass(frozen=True)
class MetaFormerConfig:
    """What there is to choose. Tuples have one entry per stage, sizes are in pixels (stem) or cells.

    Attributes:
        mixers: keys of `MIXERS`, or `path/to/file.py:Name`. heads, reductions: of the mixers that have them.
        mixer_widths: hidden widths of token MLPs and gated MLPs; `mlp_widths` those of channel MLPs.
        stem_norm, down_norm, down_norm_after: norms after the stem, before and after a downsampling convolution.
        patch_merging: Swin's merging instead of a downsampling convolution.
        positions: "none", "learned" or fixed ("sincos" as big_vision's ViTs have them, "sincos_mae"), added at the
            start of every stage, or only of those of `position_stages`.
        prefix_tokens: learned tokens that join at the last stage: 1 the class token, 2 with a distillation token.
        pool: "gap" the mean, "token" the class token, "map" attention pooling.
        pool_first: the last norm comes after the mean, not before.
        last_norm, last_norm_eps: those of the last norm, where not `norm` and `norm_eps`.
        stage_norms: a norm after every stage, of which the last is the last norm anyway (PVT v2).
        layer_scale: start of the branches' factors; res_scale: start of the shortcuts' factors, per stage.
        distilled: a second head on the second token; its logits are averaged in `forward` (DeiT).
        mlp_head: a hidden layer of 4 widths before the logits, whose norm has `head_eps`, with `dropout` behind it.
        representation_size: width of a hidden layer with tanh before the logits.
        init: "vit", "mae", "trunc_normal", "poolformer", "metaformer", "lecun" or "pvt" (`initialise.py`).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mixers: tuple[str, ...]
    heads: tuple[int, ...]
    mlp_widths: tuple[int, ...]
    mixer_widths: tuple[int, ...] | None = None
    reductions: tuple[int, ...] | None = None
    stem_kernel: int = 16
    stem_stride: int = 16
    stem_padding: int = 0
    stem_norm: str = "none"
    down_kernel: int = 3
    down_padding: int = 1
    down_norm: str = "none"
    down_norm_after: str = "none"
    patch_merging: bool = False
    positions: str = "none"
    position_stages: tuple[int, ...] | None = None
    prefix_tokens: int = 0
    pool: str = "gap"
    pool_first: bool = False
    stage_norms: bool = False
    distilled: bool = False
    mlp_head: bool = False
    head_eps: float = 1e-5
    dropout: float = 0.0
    representation_size: int | None = None
    norm: str = "layer"
    norm_eps: float = 1e-6
    last_norm: str | None = None
    last_norm_eps: float | None = None
    activation: str = "gelu"
    mixer_bias: bool = True
    qkv_bias: bool = True
    mlp_bias: bool = True
    mlp_depthwise: bool = False
    qk_norm: bool = False
    pool_size: int = 3
    kernel_size: int = 7
    window: int = 8
    layer_scale: float | None = None
    res_scale: tuple[float | None, ...] | None = None
    drop_path: float = 0.0
    residual: bool = True
    channel_mlp: bool = True
    init: str = "trunc_normal"


def grids(config: MetaFormerConfig, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of the map at every stage; ModelError where one has no cell left."""

    def after(side: int, kernel: int, stride: int, padding: int) -> int:
        return (side + 2 * padding - kernel) // stride + 1

    sides = [after(side, config.stem_kernel, config.stem_stride, config.stem_padding) for side in image_size]
    grids = [(sides[0], sides[1])]
    for _ in config.depths[1:]:
        if config.patch_merging:
            sides = [(side + 1) // 2 for side in sides]
        else:
            sides = [after(side, config.down_kernel, 2, config.down_padding) for side in sides]
        grids.append((sides[0], sides[1]))
    if min(min(grid) for grid in grids) < 1:
        raise ModelError(f"images of {image_size[0]}x{image_size[1]} pixels are too small: a stage has no cell left")
    return grids


OF_EACH_STAGE = ("widths", "mixers", "heads", "mlp_widths", "mixer_widths", "reductions", "res_scale")
"""Options with an entry for each stage; `create_model` takes one value for all stages."""


def check(config: MetaFormerConfig, image_size: tuple[int, int]) -> None:
    """Raises ModelError, with what to change, for options that no model can have together."""
    for field in OF_EACH_STAGE:
        value = getattr(config, field)
        if value is not None and len(value) != len(config.depths):
            raise ModelError(f"`{field}` has {len(value)} entries for {len(config.depths)} stages")
    choices = {
        "norm": NORMS,
        "last_norm": [*NORMS, None],
        "stem_norm": NORMS,
        "down_norm": NORMS,
        "down_norm_after": NORMS,
        "activation": ACTIVATIONS,
        "positions": ("none", "learned", *SINCOS),
        "pool": ("gap", "token", "map"),
        "init": INITIALISERS,
    }
    for field, known in choices.items():
        if getattr(config, field) not in known:
            raise ModelError(f"`{field}` is one of {', '.join(map(str, known))}, not {getattr(config, field)!r}")
    for mixer in config.mixers:
        if mixer not in MIXERS and not is_code(mixer):
            raise ModelError(f"`mixers` are of {', '.join(MIXERS)}, or `FILE.py:NAME`, not {mixer!r}")
    if config.prefix_tokens and not takes_sets(config.mixers[-1]):
        raise ModelError(f"a {config.mixers[-1]} mixer is tied to the grid and leaves no room for prefix tokens")
    if config.pool == "token" and not config.prefix_tokens:
        raise ModelError("`pool` = 'token' needs `prefix_tokens` = 1")
    if config.distilled and config.prefix_tokens != 2:
        raise ModelError("`distilled` needs `prefix_tokens` = 2: the class token and the distillation token")
    if any(side % config.stem_stride for side in image_size):
        raise ModelError(
            f"images of {image_size[0]}x{image_size[1]} pixels do not divide into patches of {config.stem_stride}"
        )
    if config.positions in SINCOS and any(width % 4 for width in config.widths):
        raise ModelError(f"sine-cosine positions need widths that are multiples of 4, not {config.widths}")
    if not set(config.position_stages or ()) <= set(range(len(config.depths))):
        raise ModelError(
            f"`position_stages` = {config.position_stages} are not all of {len(config.depths)} stages from 0"
        )
    if config.mlp_head and config.representation_size:
        raise ModelError("`mlp_head` and `representation_size` are two kinds of head: one of them")
    if config.dropout and not config.mlp_head:
        raise ModelError("`dropout` is that of the hidden layer of `mlp_head`, which this model has not")


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
        is_plain = len(self.stages) == 1 and not self.config.mlp_depthwise
        if keep is not None and not (is_plain and takes_sets(self.config.mixers[0])):
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
