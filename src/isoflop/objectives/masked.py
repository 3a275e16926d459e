"""Masked autoencoding: hidden patches are predicted from visible ones, for plain ViTs and for pyramids."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Variable

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.blocks import taken
from isoflop.models.metaformer import MetaFormer
from isoflop.objectives.decoder import Decoder
from isoflop.objectives.masking import shuffle, visible_count
from isoflop.objectives.objective import Objective, Uniforms
from isoflop.objectives.visible import check_can_hide, only_visible

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
