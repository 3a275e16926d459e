"""What every objective is: a backbone, whatever else it learns with, and the loss of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from isoflop.models import Backbone

Uniforms = Callable[[str, int], Tensor]
"""(stream, count) → numbers in [0, 1), float32 (B, count), that depend on seed, epoch, sample and stream alone."""


class Objective(nn.Module, ABC):
    """A backbone and how it learns. Its `forward` is the training loss, so that hooks of parallel engines see it."""

    backbone: Backbone

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """The mean training loss of normalised float `images` (B, C, H, W); labels as `Source.read` gives them.

        Whatever is random in it comes from `uniforms`.
        """

    @abstractmethod
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the batch of what is to be averaged over held-out images; `loss` is always among them."""
