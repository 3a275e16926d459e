"""The one interface of every backbone: images in; logits, pooled features, tokens or a pyramid of maps out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from isoflop.config import REVISION

CLASSIFIER = ("head", "head_distilled")  # where it is in models of ours


class Backbone(nn.Module, ABC):
    """An image classifier whose inside can be reached by name.

    Attributes:
        family: "vit", "poolformer", "nfnet", ...
        preset: the name that `create_model` was called with. revision: of the presets, that of now or an earlier one.
        num_features: D, the width of `features`.
        num_classes: the width of the logits.
        image_size: (height, width) in pixels that the model was built for.
        in_channels: colour channels of the images.
        feature_strides: pixels per cell of each of `feature_maps`, finest first.
        feature_widths: channels of each of `feature_maps`.
    """

    family: str
    preset: str
    revision: int = REVISION
    num_features: int
    num_classes: int
    image_size: tuple[int, int]
    in_channels: int
    feature_strides: tuple[int, ...]
    feature_widths: tuple[int, ...]
    head: nn.Module

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Pooled features (batch, num_features) of float images (batch, in_channels, height, width)."""

    @abstractmethod
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """One map (batch, channels, height, width) per stage, finest first; see `feature_strides`."""

    @abstractmethod
    def tokens(self, images: Tensor) -> Tensor:
        """The last layer's tokens (batch, count, num_features), prefix tokens first where the model has them."""

    def extra_repr(self) -> str:
        """One line above the layers: name, size, what goes in and what comes out."""
        count = sum(parameter.numel() for parameter in self.parameters())
        height, width = self.image_size
        return (
            f"{self.preset}: {count:,} parameters, images {self.in_channels}×{height}×{width}, "
            f"{self.num_features} features, {self.num_classes} classes"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of float images (batch, in_channels, height, width)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def classifier(self) -> tuple[str, ...]:
        """Names of the modules that make logits of features: what other rules of training are for."""
        return CLASSIFIER

    @abstractmethod
    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter by name: 0 the stem, 1…L the blocks, L + 1 what follows (for layer decay)."""
