"""Semantic segmentation: a class for every pixel, by a decoder over the maps of any backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.config import SegmentConfig
from isoflop.data.dense.objects import IGNORED
from isoflop.models import Backbone
from isoflop.models.drop import Dropout
from isoflop.objectives.dense.decoders import SemanticFPN, UperNet, convolution
from isoflop.objectives.dense.detector import freeze_unused
from isoflop.objectives.dense.maps import make_maps
from isoflop.objectives.objective import Objective, Uniforms


class Segmenter(Objective):
    """Tells the class of every pixel by cross-entropy; pixels of class 255 teach nothing.

    Raises ModelError as `make_maps`.
    """

    def __init__(self, backbone: Backbone, config: SegmentConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        freeze_unused(backbone)
        is_upernet = config.head == "upernet"
        self.maps = make_maps(backbone, taps=is_upernet, window=config.window, global_blocks=config.global_blocks)
        self.decoder = (
            UperNet(self.maps.widths, config.width or 512)
            if is_upernet
            else SemanticFPN(self.maps.widths, config.width or 256)
        )
        self.classifier = nn.Sequential(ChannelDropout(config.dropout), nn.Conv2d(self.decoder.width, num_classes, 1))
        self.auxiliary: nn.Module | None = None
        if is_upernet and config.auxiliary:
            middle = 256 if self.decoder.width >= 256 else self.decoder.width
            self.auxiliary = nn.Sequential(
                convolution(self.maps.widths[2], middle, 3),
                ChannelDropout(config.dropout),
                nn.Conv2d(middle, num_classes, 1),
            )

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`; `labels` are maps (B, H, W)."""
        maps = self.maps(self.backbone, images)
        logits = self.classifier(self.decoder(maps))
        if images.is_meta:  # its cost is being counted
            total: Tensor = logits.sum() + (self.auxiliary(maps[2]).sum() if self.auxiliary is not None else 0)
            return total
        loss = pixel_loss(logits, labels)
        if self.auxiliary is not None:
            loss = loss + self.config.auxiliary * pixel_loss(self.auxiliary(maps[2]), labels)
        return loss

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the images of the loss, and of the share of pixels told right (`accuracy`)."""
        logits = self.logits(images)
        told, counts = logits.argmax(dim=1), labels != IGNORED
        right = ((told == labels) & counts).flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp(min=1)
        return {"loss": pixel_loss(logits, labels).double() * len(images), "accuracy": right.sum().double()}

    def logits(self, images: Tensor) -> Tensor:
        """Of each class and pixel, float32 (B, classes, H, W), for normalised images (B, C, H, W)."""
        logits = self.classifier(self.decoder(self.maps(self.backbone, images)))
        return enlarged(logits, images.shape[-2:])


class ChannelDropout(nn.Module):
    """Whole channels of a picture's map zeroed at `rate` and the rest scaled up, as before mmsegmentation's classifiers
    (arXiv 1411.4280, section 3.2)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.draw = Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw(x.new_ones(*x.shape[:2], 1, 1)) if self.training else x


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy in nats of `labels` (B, H, W), summed over the pixels that count and divided by the number of
    all, as in mmsegmentation: a mean over the others would depend on which pictures share a batch."""
    logits = enlarged(logits, labels.shape[-2:])
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum") / labels.numel()


def enlarged(logits: Tensor, size: torch.Size) -> Tensor:
    """Logits (B, classes, rows, columns) at the size of the pixels, bilinear, float32."""
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
