"""One skeleton for the whole Transformer branch: x + mixer(norm(x)), then x + mlp(norm(x)), in stages.

ViT, PoolFormer and their relatives are rows of `presets.py` over this file (MetaFormer, arXiv 2111.11418, fig. 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.heads import MapPool
from isoflop.models.layers import ACTIVATIONS, NORMS, ChannelMLP, Scale, drop_path
from isoflop.models.mixers import GRID_MIXERS, MIXERS, Site
from isoflop.models.positions import sincos_2d


@dataclass(frozen=True)
class MetaFormerConfig:
    """What there is to choose. Tuples have one entry per stage; heads and MLP widths too."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mixers: tuple[str, ...]
    heads: tuple[int, ...]
    mlp_widths: tuple[int, ...]
    stem_kernel: int = 16
    stem_stride: int = 16
    stem_padding: int = 0
    positions: str = "none"
    prefix_tokens: int = 0
    pool: str = "gap"
    norm: str = "layer"
    activation: str = "gelu"
    mixer_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    pool_size: int = 3
    layer_scale: float | None = None
    drop_path: float = 0.0
    residual: bool = True
    channel_mlp: bool = True
    init: str = "trunc_normal"


class Block(nn.Module):
    """A token mixer and a channel MLP, each behind a norm and inside a residual."""

    def __init__(self, config: MetaFormerConfig, mixer: str, site: Site, mlp_width: int, drop_rate: float) -> None:
        super().__init__()
        self.residual, self.drop_rate = config.residual, drop_rate
        self.norm1 = NORMS[config.norm](site.width)
        self.mixer = MIXERS[mixer](site)
        scaled = config.layer_scale is not None
        start = config.layer_scale or 0.0
        self.scale1 = Scale(site.width, start) if scaled else nn.Identity()
        self.norm2: nn.Module | None = None
        if config.channel_mlp:
            self.norm2 = NORMS[config.norm](site.width)
            self.mlp = ChannelMLP(site.width, mlp_width, config.activation, config.mlp_bias)
            self.scale2 = Scale(site.width, start) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.scale1(self.mixer(self.norm1(x))))
        if self.norm2 is not None:
            x = self.add(x, self.scale2(self.mlp(self.norm2(x))))
        return x

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        branch = drop_path(branch, self.drop_rate, self.training)
        return x + branch if self.residual else branch


class Patches(nn.Module):
    """A strided convolution from (batch, channels, height, width) to (batch, rows, columns, width)."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, kernel, stride, padding)

    def forward(self, images: Tensor) -> Tensor:
        conv = self.conv
        size = conv.kernel_size[0]
        if conv.stride[0] != size or conv.padding[0]:
            out: Tensor = conv(images.contiguous(memory_format=torch.channels_last))
            return out.movedim(1, -1)
        # Patches that do not overlap are one matrix product over the flattened pixels.
        batch, channels, height, width = images.shape
        pixels = images.view(batch, channels, height // size, size, width // size, size)
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // size, width // size, -1)
        return nn.functional.linear(pixels, conv.weight.flatten(1), conv.bias)


class Downsample(nn.Module):
    """A strided convolution between stages, on (batch, rows, columns, width)."""

    def __init__(self, width: int, new_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, new_width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.movedim(-1, 1))
        return out.movedim(1, -1)


class MetaFormer(Backbone):
    """The backbone that a `MetaFormerConfig` describes. Inside, maps are (batch, rows, columns, width)."""

    def __init__(
        self, config: MetaFormerConfig, *, num_classes: int, image_size: tuple[int, int], in_channels: int
    ) -> None:
        super().__init__()
        _check(config, image_size)
        self.config = config
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.num_features = config.widths[-1]
        self.feature_widths = config.widths
        self.feature_strides = tuple(config.stem_stride * 2**k for k in range(len(config.widths)))
        self.stem = Patches(in_channels, config.widths[0], config.stem_kernel, config.stem_stride, config.stem_padding)
        side = [(n + 2 * config.stem_padding - config.stem_kernel) // config.stem_stride + 1 for n in image_size]
        grid = (side[0], side[1])
        self.stem_grid = grid
        width = config.widths[0]
        if config.positions == "learned":
            self.position = nn.Parameter(torch.randn(1, grid[0] * grid[1], width) / math.sqrt(width))
        elif config.positions == "sincos":
            self.register_buffer("position", sincos_2d(grid, width)[None], persistent=False)
        if config.prefix_tokens:
            self.prefix = nn.Parameter(torch.zeros(1, config.prefix_tokens, width))
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            if stage:
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
                self.downsamples.append(Downsample(width, config.widths[stage]))
            width = config.widths[stage]
            site = Site(width, grid, config.heads[stage], config.mixer_bias, config.qk_norm, config.pool_size)
            self.stages.append(
                nn.Sequential(
                    *(
                        Block(config, config.mixers[stage], site, config.mlp_widths[stage], rates.pop(0))
                        for _ in range(depth)
                    )
                )
            )
        self.norm = NORMS[config.norm](width)
        if config.pool == "map":
            self.pool = MapPool(width, config.heads[-1], config.mlp_widths[-1])
        self.head = nn.Linear(width, num_classes)
        _initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """The stem's cells with their positions added (batch, rows, columns, width); no prefix tokens yet."""
        if tuple(images.shape[1:]) != (self.in_channels, *self.image_size):
            raise ModelError(
                f"this model takes images of {(self.in_channels, *self.image_size)} (channels, height, width), "
                f"not {tuple(images.shape[1:])}"
            )
        x: Tensor = self.stem(images)
        if self.config.positions != "none":
            x = x + self.position.view(1, *self.stem_grid, -1)
        return x

    def encode(self, x: Tensor) -> Tensor:
        """All stages and the last norm over embedded cells, or over any subset of them (batch, tokens, width)."""
        return self.norm(self.pyramid(x)[-1])  # type: ignore[no-any-return]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, before the last norm; prefix tokens come first where the model has them."""
        if self.config.prefix_tokens:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x.flatten(1, -2)], dim=1)
        outputs = []
        for index, stage in enumerate(self.stages):
            if index:
                x = self.downsamples[index - 1](x)
            x = stage(x)
            outputs.append(x)
        return outputs

    def tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised last tokens (batch, prefix + count, num_features).

        With `keep` (batch, kept) of patch indices, only these patches are encoded, in that order: positions are added
        before the others are left out (masked autoencoding, arXiv 2111.06377). Models of one stage only.
        """
        x = self.embed(images)
        if keep is not None:
            if len(self.stages) > 1 or any(mixer in GRID_MIXERS for mixer in self.config.mixers):
                raise ModelError("only a one-stage model whose mixer needs no grid can leave patches out")
            x = x.flatten(1, 2).gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        x = self.encode(x)
        return x.flatten(1, -2)

    def features(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        prefix = self.config.prefix_tokens
        if self.config.pool == "map":
            return self.pool(x)  # type: ignore[no-any-return]
        if self.config.pool == "token":
            return x[:, 0]
        return x[:, prefix:].mean(dim=1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        maps = []
        for x in self.pyramid(self.embed(images)):
            if x.ndim == 3:
                x = x[:, self.config.prefix_tokens :].reshape(len(x), *self.stem_grid, -1)
            maps.append(x.movedim(-1, 1))
        return maps

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name in ("position", "prefix", "pool.probe")}

    def layer_ids(self) -> dict[str, int]:
        starts = [sum(self.config.depths[:k]) for k in range(len(self.config.depths))]
        last = sum(self.config.depths) + 1
        ids = {}
        for name, _ in self.named_parameters():
            part, *rest = name.split(".")
            if part == "stages":
                ids[name] = starts[int(rest[0])] + int(rest[1]) + 1
            elif part == "downsamples":
                ids[name] = starts[int(rest[0]) + 1] + 1
            else:
                ids[name] = 0 if part in ("stem", "position", "prefix") else last
        return ids


def _check(config: MetaFormerConfig, image_size: tuple[int, int]) -> None:
    for field in ("widths", "mixers", "heads", "mlp_widths"):
        if len(getattr(config, field)) != len(config.depths):
            raise ModelError(f"`{field}` has {len(getattr(config, field))} entries for {len(config.depths)} stages")
    for field, table in (("norm", NORMS), ("activation", ACTIVATIONS)):
        if getattr(config, field) not in table:
            raise ModelError(f"`{field}` is one of {', '.join(table)}, not {getattr(config, field)!r}")
    for mixer in config.mixers:
        if mixer not in MIXERS:
            raise ModelError(f"`mixers` are of {', '.join(MIXERS)}, not {mixer!r}")
    if config.prefix_tokens and (len(config.depths) > 1 or GRID_MIXERS & set(config.mixers)):
        raise ModelError("prefix tokens need one stage and a mixer without a grid")
    if any(side % config.stem_stride for side in image_size):
        raise ModelError(
            f"images of {image_size[0]}x{image_size[1]} pixels do not divide into patches of {config.stem_stride}"
        )
    if config.positions == "sincos" and config.widths[0] % 4:
        raise ModelError(f"sine-cosine positions need a width that is a multiple of 4, not {config.widths[0]}")


@torch.no_grad()
def _initialise(model: MetaFormer) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight
            if model.config.init == "vit":
                fan_in = weight[0].numel()
                if isinstance(module, nn.Conv2d):
                    nn.init.trunc_normal_(weight, std=1 / math.sqrt(fan_in))  # lecun normal, as flax
                else:
                    # Query, key and value are fused, but each keeps the bound of its own square matrix.
                    parts = 3 if name.endswith("qkv") else 2 if name.endswith("kv") else 1
                    bound = math.sqrt(6 / (fan_in + weight.shape[0] // parts))
                    nn.init.uniform_(weight, -bound, bound)
            else:
                nn.init.trunc_normal_(weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.config.init == "vit":
        nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
