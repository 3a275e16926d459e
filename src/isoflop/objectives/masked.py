"""Masked autoencoding: masked patches are predicted from visible ones, for plain ViTs and for pyramids."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from isoflop.errors import ConfigError, ModelError
from isoflop.models import Backbone
from isoflop.models.blocks import Block, taken
from isoflop.models.interop import load_weights, to_layout
from isoflop.models.interop.names import in_files
from isoflop.models.layers import LayerNorm, sincos_2d
from isoflop.models.metaformer import MetaFormer
from isoflop.models.mixers import Site
from isoflop.models.operators import Linear
from isoflop.models.parameters import Kinds
from isoflop.objectives.supervised import Objective, Uniforms
from isoflop.objectives.visible import check_can_hide, only_visible

# Which patches of an image are hidden: samplers that are functions of the numbers they are given.
#
# A sampler ranks the patches of every image; the lowest ranks stay visible. So the count is exact, whatever the
# sampler,
# and a batch stays rectangular.


BLOCKS = 24  # rectangles laid on an image; what they leave uncovered is hidden last
LEAST_AREA = 0.08  # of the image, of a rectangle (16 of 196 patches in arXiv 2106.08254, algorithm 1)
MOST_ASPECT = 1 / 0.3

Grid = tuple[int, int]


def visible_count(grid: Grid, ratio: float) -> int:
    """How many patches of `grid` stay visible when `ratio` of them are hidden, rounded down as in the paper's code.

    Raises ConfigError when none is left of either kind.
    """
    total = grid[0] * grid[1]
    visible = int(total * (1 - ratio) + 1e-9)  # 0.4 · 5 is 2, although 1 - 0.6 is less than 0.4 in binary
    if not 0 < visible < total:
        which = "visible" if visible == 0 else "masked"
        raise ConfigError(
            f"`objective.ratio` = {ratio:g} leaves no {which} patch of {total} ({grid[0]}x{grid[1]}): "
            f"it must be above 0 and at most {1 - 1 / total:.4g}"
        )
    return visible


def random_ranks(uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """Any patches (arXiv 2111.06377): ranks (B, rows · columns)."""
    return uniforms("mask", grid[0] * grid[1])


def block_ranks(uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """Rectangles are hidden, one after another, of random area, aspect and place (BEiT, arXiv 2106.08254, alg. 1).

    The last one is cut at random where the count is reached.
    """
    rows, columns = grid
    total = rows * columns
    numbers = uniforms("mask", 4 * BLOCKS + total)
    area, aspect, top, left = numbers[:, : 4 * BLOCKS].view(-1, BLOCKS, 4).unbind(2)
    least, most = LEAST_AREA * total, max(LEAST_AREA * total, total - visible)
    area = least + (most - least) * area
    aspect = torch.exp((2 * aspect - 1) * math.log(MOST_ASPECT))
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top, left = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
    r = torch.arange(rows, device=numbers.device).view(1, 1, rows, 1)
    c = torch.arange(columns, device=numbers.device).view(1, 1, 1, columns)
    top, left, height, width = (x[..., None, None] for x in (top, left, height, width))
    covers = (r >= top) & (r < top + height) & (c >= left) & (c < left + width)
    order = torch.arange(BLOCKS, device=numbers.device).view(1, BLOCKS, 1, 1)
    first = torch.where(covers, order, BLOCKS).amin(dim=1).flatten(1)  # the first rectangle over each patch
    return -(first + numbers[:, 4 * BLOCKS :])


def grid_ranks(uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """A regular lattice stays visible, moved at random: at 0.75, one patch of every 2x2 (arXiv 2111.06377, fig. 6).

    For any ratio, the lattice is that of ordered dithering (Bayer's matrix), whose levels fill up one after another.
    """
    numbers = uniforms("mask", 2)
    levels = _bayer(max(grid)).to(numbers.device)
    side = len(levels)
    moved = (numbers * side).long()
    r = (torch.arange(grid[0], device=numbers.device) + moved[:, :1]) % side
    c = (torch.arange(grid[1], device=numbers.device) + moved[:, 1:]) % side
    return levels[r[:, :, None], c[:, None, :]].flatten(1)


def _bayer(least: int) -> Tensor:
    """Bayer's matrix of a power of two of at least `least`: float levels 0 … side² - 1, each once."""
    levels = torch.zeros(1, 1)
    while len(levels) < least:
        levels = torch.cat(
            [torch.cat([4 * levels, 4 * levels + 2], dim=1), torch.cat([4 * levels + 3, 4 * levels + 1], dim=1)]
        )
    return levels


SAMPLERS: dict[str, Callable[[Uniforms, Grid, int], Tensor]] = {
    "random": random_ranks,
    "block": block_ranks,
    "grid": grid_ranks,
}


def shuffle(sampler: str, uniforms: Uniforms, grid: Grid, visible: int) -> Tensor:
    """The patches of every image, visible ones first: int64 (B, rows · columns), of which `visible` are kept."""
    return SAMPLERS[sampler](uniforms, grid, visible).argsort(dim=1, stable=True)


# The light Transformer that predicts hidden patches from encoded visible ones, and is thrown away afterwards.


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


PLAIN_RATIO, PYRAMID_RATIO = 0.75, 0.6
EPS = 1e-6  # of the variance of a patch


@dataclass(frozen=True)
class Reconstruction:
    """What a masked autoencoder makes of a batch.

    Attributes:
        hidden: patches that it did not see, bool (B, rows, columns).
        images: (B, C, H, W), normalised as its input; visible patches as they were given.
        is_normalised: its predictions lack the mean and deviation of each patch, which were taken from the hidden
            pixels themselves to show them. Such a picture knows more than the model does.
    """

    hidden: Tensor
    images: Tensor
    is_normalised: bool


class Masked(Objective):
    """The mean squared error of the predicted hidden patches (arXiv 2111.06377, section 3).

    A plain ViT encodes the visible patches alone. A pyramid hides cells of its coarsest map, and every operator leaves
    hidden cells out (`visible.py`); its last map is decoded as a ViT's tokens are.

    Args:
        ratio: share of hidden patches; 0.75 for plain ViTs, 0.6 for pyramids by default.
        sampler: a key of `SAMPLERS`.
        normalise: predict patches with their own mean and deviation taken out.

    Raises ModelError for a backbone that cannot be trained so, and for images that do not divide into its patches;
    ConfigError for a ratio that leaves nothing visible or hidden.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        ratio: float | None = None,
        sampler: str = "random",
        normalise: bool = True,
        decoder_depth: int = 8,
        decoder_width: int = 512,
        decoder_heads: int = 16,
    ) -> None:
        super().__init__()
        check_can_hide(backbone)
        self.backbone = backbone
        self.sampler, self.normalise = sampler, normalise
        self.is_plain = is_plain(backbone)
        self.patch = patch_size(backbone)
        height, width = backbone.image_size
        if height % self.patch or width % self.patch:
            raise ModelError(
                f"masking hides patches of {self.patch}x{self.patch} pixels of {backbone.preset}, "
                f"into which images of {height}x{width} do not divide"
            )
        self.grid = (height // self.patch, width // self.patch)
        usual = PLAIN_RATIO if self.is_plain else PYRAMID_RATIO
        self.visible = visible_count(self.grid, usual if ratio is None else ratio)
        self.decoder = Decoder(
            self.grid,
            backbone.num_features,
            self.patch**2 * backbone.in_channels,
            depth=decoder_depth,
            width=decoder_width,
            heads=decoder_heads,
        )
        self._hiding = ExitStack()
        for name, parameter in backbone.named_parameters():
            if name.startswith(UNUSED) or (name.startswith("norm.") and _norm_is_after_pooling(backbone)):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`; the labels are not looked at."""
        return self._errors(images, uniforms).mean()

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """The sum over the batch of each image's mean squared error (`loss`)."""
        return {"loss": self._errors(images, uniforms).mean(dim=1).double().sum()}

    def _errors(self, images: Tensor, uniforms: Uniforms) -> Tensor:
        """The mean squared error of every hidden patch (B, hidden), float32."""
        order = self.order(uniforms)
        targets = taken(patches(images, self.patch), order[:, self.visible :])
        if self.normalise:
            mean, deviation = _statistics(targets)
            targets = (targets - mean) / deviation
        return (self.predict(images, order).float() - targets).square().mean(dim=2)

    def order(self, uniforms: Uniforms) -> Tensor:
        """All patches of every image, the `visible` ones first: int64 (B, rows · columns)."""
        return shuffle(self.sampler, uniforms, self.grid, self.visible)

    def predict(self, images: Tensor, order: Tensor) -> Tensor:
        """The predicted hidden patches (B, hidden, patch² · C), in the order of `order`."""
        predicted: Tensor = self.decoder(self.encode(images, order[:, : self.visible]), order, self.visible)
        return predicted

    def encode(self, images: Tensor, keep: Tensor) -> Tensor:
        """Encoded prefix tokens and visible patches (B, prefix + visible, D), in the order of `keep` (B, visible)."""
        if self.is_plain and isinstance(self.backbone, MetaFormer):
            return self.backbone.tokens(images, keep=keep)
        self._hiding.close()
        self._hiding.enter_context(only_visible(self.backbone, keep, self.grid))
        tokens = self.backbone.tokens(images)
        if tokens.requires_grad:
            # Until the end of the backward pass, in which activations may be computed again.
            tokens.register_hook(lambda _: _after_backward(self._hiding.close))  # type: ignore[no-untyped-call]
        else:
            self._hiding.close()
        prefix = tokens.shape[1] - self.grid[0] * self.grid[1]
        return torch.cat([tokens[:, :prefix], taken(tokens[:, prefix:], keep)], dim=1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, uniforms: Uniforms) -> Reconstruction:
        """What is predicted of `images` (B, C, H, W), as pictures."""
        order = self.order(uniforms)
        hidden = order[:, self.visible :]
        cells = patches(images, self.patch)
        predicted = self.predict(images, order).to(cells.dtype)
        if self.normalise:
            mean, deviation = _statistics(taken(cells, hidden))
            predicted = predicted * deviation + mean
        filled = cells.scatter(1, hidden[..., None].expand_as(predicted), predicted)
        mask = torch.zeros(order.shape, dtype=torch.bool, device=images.device).scatter(1, hidden, True)
        return Reconstruction(mask.view(-1, *self.grid), unpatched(filled, self.patch, self.grid), self.normalise)


def _after_backward(call: Callable[[], None]) -> None:
    Variable._execution_engine.queue_callback(call)


# Parts of a backbone that a masked autoencoder does not train.
UNUSED = ("head.", "head_distilled.", "pool.")


def is_plain(backbone: Backbone) -> bool:
    """Whether visible patches can be encoded by themselves: one stage of attention over patches that do not overlap."""
    if not isinstance(backbone, MetaFormer) or len(backbone.stages) > 1:
        return False
    config = backbone.config
    alone = {"attention", "identity"} | ({"reduced_attention"} if config.reductions in (None, (1,)) else set())
    overlaps = config.stem_kernel != config.stem_stride
    return set(config.mixers) <= alone and not config.mlp_depthwise and not overlaps


def patch_size(backbone: Backbone) -> int:
    """Pixels of a side of what is hidden at a time: a cell of the last map."""
    return backbone.feature_strides[-1]


def _norm_is_after_pooling(backbone: Backbone) -> bool:
    return isinstance(backbone, MetaFormer) and backbone.config.pool_first


def patches(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) as patches (B, rows · columns, size² · C), the channels of a pixel side by side."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // size, size, width // size, size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


def unpatched(cells: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """`patches` backwards."""
    parts = cells.view(len(cells), *grid, size, size, -1).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(len(cells), -1, grid[0] * size, grid[1] * size)


def _statistics(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch (B, n, 1), as in the paper's code: unbiased, with `EPS` inside."""
    var, mean = torch.var_mean(cells, dim=-1, keepdim=True)
    return mean, (var + EPS).sqrt()


# Weights of Hugging Face's ViTMAEForPreTraining for our masked autoencoder.


# Their names, of which transformers 5 shows others than its files have, to ours. Query, key and value become one.
DECODER = (
    (r"^decoder_embed\.", "embed."),
    (r"^decoder_norm\.", "norm."),
    (r"^decoder_pred\.", "predict."),
    (r"^decoder_layers\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.attention\.output\.dense\.", ".mixer.proj."),
    (r"(\d)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".mixer.\1."),
    (r"\.attention\.q_proj\.", ".mixer.query."),
    (r"\.attention\.k_proj\.", ".mixer.key."),
    (r"\.attention\.v_proj\.", ".mixer.value."),
    (r"\.attention\.o_proj\.", ".mixer.proj."),
)


def load_huggingface_mae(objective: Masked, state: Mapping[str, Tensor]) -> None:
    """Copies the weights of a ViTMAEForPreTraining of the same shape into `objective`, encoder and decoder.

    Raises ModelError for weights of another shape.
    """
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("vit.")}
    load_weights(objective.backbone, encoder, "huggingface", head=False)
    decoder: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("decoder."):
            ours = name.removeprefix("decoder.")
            for pattern, replacement in DECODER:
                ours = re.sub(pattern, replacement, ours)
            decoder[ours] = tensor
    # The class token has no position in the decoder.
    decoder["positions"] = decoder.pop("decoder_pos_embed", torch.empty(1, 1, 0))[:, 1:]
    for name in [name for name in decoder if ".query." in name]:
        parts = [decoder.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        decoder[name.replace("query", "qkv")] = torch.cat(parts)
    try:
        objective.decoder.load_state_dict(decoder)
    except RuntimeError as error:
        raise ModelError(f"these weights are not of this decoder: {' '.join(str(error).split())}") from error


def mae_state(objective: Masked, names: Iterable[str]) -> dict[str, Tensor]:
    """The weights of `objective`, a plain ViT's, under those `names` of a ViTMAEForPreTraining of its shape."""
    encoder = to_layout(objective.backbone, "huggingface")
    decoder = dict(objective.decoder.state_dict())
    positions = decoder["positions"]
    out: dict[str, Tensor] = {}
    for name in names:
        if not name.startswith("decoder."):
            out[name] = encoder[in_files(name, "huggingface")]
            continue
        ours = name.removeprefix("decoder.")
        for pattern, replacement in DECODER:
            ours = re.sub(pattern, replacement, ours)
        part = re.search(r"\.(query|key|value)\.", ours)
        if ours == "decoder_pos_embed":
            out[name] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        elif part:
            whole = decoder[ours.replace(part[1], "qkv")]
            out[name] = whole.chunk(3)[("query", "key", "value").index(part[1])]
        else:
            out[name] = decoder[ours]
    return out
