"""The interface of every backbone: images in; logits, pooled features, tokens or a pyramid of maps out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from isoflop.config import REVISION
from isoflop.errors import ModelError
from isoflop.models.blocks import Dropout
from isoflop.models.layers import ChannelMLP, LayerNorm, SquaredReLU
from isoflop.models.operators import attention
from isoflop.models.parameters import Kinds

CLASSIFIER = ("head", "head_distilled")  # where it is in models of ours


class Backbone(nn.Module, ABC):
    """An image classifier whose inside can be reached by name. A model of one's own defines `features`, `num_features`
    and `head`, and the rest where it is needed: maps for dense tasks, layer ids for layer decay.

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
    feature_strides: tuple[int, ...] = ()
    feature_widths: tuple[int, ...] = ()
    head: nn.Module

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Pooled features (batch, num_features) of float images (batch, in_channels, height, width)."""

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """One map (batch, channels, height, width) per stage, finest first; see `feature_strides`."""
        raise ModelError(f"{self.preset} defines no `feature_maps`")

    def tokens(self, images: Tensor) -> Tensor:
        """The last layer's tokens (batch, count, num_features), prefix tokens first where the model has them."""
        raise ModelError(f"{self.preset} defines no `tokens`")

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

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter by name: 0 the stem, 1…L the blocks, L + 1 what follows (for layer decay)."""
        raise ModelError(f"{self.preset} defines no `layer_ids`, which layer decay needs")


def outputs_of(stages: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What each of the stages, one after another, makes of `x`."""
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs


# From tokens to one vector per image: the class token, the mean, or attention pooling (MAP).


class MapPool(nn.Module):
    """Multi-head attention pooling: a learned probe attends over the tokens, then x + MLP(LN(x)) (arXiv 2106.04560).

    (batch, tokens, width) -> (batch, width). There is no residual around the attention: the probe carries no content.
    """

    parameter_kinds: ClassVar[Kinds] = {"probe": "token"}
    split_by_head: ClassVar[dict[str, int]] = {"q": 1, "kv": 2, "proj": 0}

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str = "gelu") -> None:
        super().__init__()
        if width % heads:
            raise ModelError(f"attention pooling of width {width} cannot be split into {heads} heads")
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = LayerNorm(width)
        self.mlp = ChannelMLP(width, mlp_width, activation)
        bound = math.sqrt(6 / (1 + width))  # xavier over the (1, width) probe
        nn.init.uniform_(self.probe, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        q = self.q(self.probe).view(1, 1, self.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        k, v = self.kv(x).view(batch, -1, 2, self.heads, width // self.heads).transpose(1, 3).unbind(2)
        pooled: Tensor = self.proj(attention(q, k, v).transpose(1, 2).reshape(batch, width))
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out


class MLPHead(nn.Module):
    """Logits through a hidden layer of four widths, squared ReLU, LayerNorm and dropout (arXiv 2210.13452, appendix).

    The eps of its norm is 1e-5 in the authors' code, 1e-6 in timm.
    """

    def __init__(self, width: int, num_classes: int, eps: float = 1e-5, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = SquaredReLU()
        self.norm = LayerNorm(4 * width, eps)
        self.dropout = Dropout(dropout)
        self.fc2 = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.dropout(self.norm(self.act(self.fc1(x)))))
        return logits


class TanhHead(nn.Module):
    """Logits through a hidden layer with tanh: the head of the first ViTs in pretraining (arXiv 2010.11929).

    Their code calls the hidden layer `pre_logits`, and leaves it out in fine-tuning.
    """

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.fc1(x).tanh())
        return logits
