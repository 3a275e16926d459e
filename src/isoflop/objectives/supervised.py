"""Supervised learning: softmax cross-entropy on labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models import Backbone
from isoflop.objectives.objective import Objective, Uniforms


class Supervised(Objective):
    """Softmax cross-entropy in nats, with label smoothing in training only (arXiv 1512.00567, section 7)."""

    def __init__(self, backbone: Backbone, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """The mean training loss of `images` (B, C, H, W) with int64 `labels` (B,)."""
        return F.cross_entropy(self.backbone(images).float(), labels, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the batch: the log loss (`loss`) and the number of right top-1 answers (`accuracy`)."""
        logits = self.backbone(images).float()
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum").double(),
            "accuracy": (logits.argmax(dim=1) == labels).sum().double(),
        }
