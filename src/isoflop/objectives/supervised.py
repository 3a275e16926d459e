"""Supervised learning: softmax cross-entropy on labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Supervised:
    """Softmax cross-entropy, with label smoothing in training only (arXiv 1512.00567, section 7)."""

    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The mean training loss, in nats, of float `images` (B, C, H, W) and int64 `labels` (B,)."""
        return F.cross_entropy(model(images).float(), labels, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sums over the batch: the log loss in nats (`loss`) and the number of right top-1 answers (`accuracy`)."""
        logits = model(images).float()
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum").double(),
            "accuracy": (logits.argmax(dim=1) == labels).sum().double(),
        }
