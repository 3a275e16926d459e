"""Supervised learning: losses for one class per image, for several, and for mixed ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isoflop.errors import ModelError
from isoflop.models import Backbone

# What every objective is: a backbone, whatever else it learns with, and the loss of a batch.


Uniforms = Callable[[str, int], Tensor]
"""(stream, count) → numbers in [0, 1), float32 (B, count), that depend on seed, epoch, sample and stream alone."""


class Objective(nn.Module, ABC):
    """A backbone and how it learns. Its `forward` is the training loss, so that hooks of parallel engines see it."""

    backbone: Backbone
    views: int = 1
    """How many images the backbone sees of each that is given."""
    is_of_batch: bool = False
    """Whether the loss compares the images of a batch: it is then that of a whole batch of training, or undefined."""

    freezes_batchnorm: bool = False
    """Whether BatchNorm of the backbone keeps the statistics that it has, in training too."""
    calibrates: bool = False
    """Whether `evaluate` measures the loss at other temperatures than 1, too."""

    def features(self, images: Tensor) -> Tensor:
        """What the backbone makes of `images` (B, C, H, W): pooled features (B, D)."""
        return self.backbone.features(images)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freezes_batchnorm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """The mean training loss of normalised float `images` (B, C, H, W); labels as `Source.read` gives them.

        Whatever is random in it comes from `uniforms`.
        """

    @abstractmethod
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the batch of what is to be averaged over held-out images; `loss` is always among them."""


Loss = Literal["softmax", "sigmoid"]

PUBLISHED_HEAD_BIAS = -10.0


class Supervised(Objective):
    """Cross-entropy in nats: of a softmax over the classes, or of a sigmoid for each class, summed over the classes.

    Labels are class numbers int64 (B,), or float (B, classes): the zeros and ones of images with several classes, or
    the shares that Mixup and CutMix leave. Smoothing acts in training only: it spreads `label_smoothing` of the target
    over all classes (arXiv 1512.00567, section 7), and where an image may have several, it moves each by that share
    towards ½.

    Args:
        loss: by default softmax; sigmoid where images may have several classes (`has_several_labels`).
        head_bias: where the classifier's bias starts. By default as the model has it; with a sigmoid over classes of
            which an image has one, -10, the logit of one class in 22,000 (ViT's code for arXiv 2010.11929).

    Raises ModelError for a softmax over several labels, and for a bias that the classifier does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        loss: Loss | None = None,
        label_smoothing: float = 0.0,
        head_bias: float | None = None,
        has_several_labels: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.loss: Loss = loss or ("sigmoid" if has_several_labels else "softmax")
        self.label_smoothing = label_smoothing
        self.has_several_labels = has_several_labels
        if self.loss == "softmax" and has_several_labels:
            raise ModelError("a softmax is for one class an image, and these images may have several: use the sigmoid")
        if head_bias is None and self.loss == "sigmoid" and not has_several_labels:
            head_bias = PUBLISHED_HEAD_BIAS
        if head_bias is not None:
            nn.init.constant_(classifier_bias(backbone), head_bias)

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`: the mean over `images` (B, C, H, W)."""
        logits = self.backbone(images).float()
        if self.loss == "softmax":
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        spread = 0.5 if self.has_several_labels else 1 / logits.shape[1]
        targets = dense(labels, logits) * (1 - self.label_smoothing) + self.label_smoothing * spread
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the batch of the loss without smoothing (`loss`) and of right answers (`accuracy`).

        With one class an image, an answer is right when the largest logit is that of the class. With several, when all
        classes are told right at a probability of ½ (scikit-learn's `accuracy_score`); and `average_precision` tells
        how well the image's classes come before the others, whatever the threshold (see below).
        """
        logits = self.backbone(images).float()
        if self.loss == "softmax":
            loss = F.cross_entropy(logits, labels, reduction="sum")
        else:
            loss = F.binary_cross_entropy_with_logits(logits, dense(labels, logits), reduction="sum")
        if not self.has_several_labels:
            right = (logits.argmax(dim=1) == labels).sum().double()
            scaled = at_temperatures(logits, labels) if self.calibrates and self.loss == "softmax" else {}
            return {"loss": loss.double(), "accuracy": right, **scaled}
        return {
            "loss": loss.double(),
            "accuracy": ((logits > 0) == (labels > 0)).all(dim=1).sum().double(),
            "average_precision": average_precision(logits, labels).sum().double(),
        }


TEMPERATURES = tuple(2.0 ** (k / 4) for k in range(-4, 9))
"""From ½ to 4, so near to each other that the loss at the best of them is hardly above the lowest."""
SCALED = "loss_at_"


def at_temperatures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums of the cross-entropy of logits (B, classes) over each of `TEMPERATURES`, by `SCALED` and its number."""
    return {
        f"{SCALED}{k}": F.cross_entropy(logits / temperature, labels, reduction="sum").double()
        for k, temperature in enumerate(TEMPERATURES)
    }


def dense(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as targets of the shape and type of `logits` (B, classes)."""
    return (F.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels).to(logits.dtype)


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """How well each image's classes are ranked, (B,) in 0 … 1, of scores and zeros and ones (B, classes).

    The mean, over the classes that an image has, of the share of its classes among all that score at least as high:
    1 when they come before all others. An image without classes counts as 1. The mean over images is scikit-learn's
    `label_ranking_average_precision_score`.
    """
    is_true = labels > 0
    of_true = torch.where(is_true, scores, -torch.inf)

    def at_least(ranked: Tensor) -> Tensor:  # how many score as high as each class, or higher
        return ranked.shape[1] - torch.searchsorted(ranked.sort(dim=1).values, scores)

    precision = at_least(of_true) / at_least(scores)
    count = is_true.sum(dim=1)
    mean = torch.where(is_true, precision, 0.0).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, mean, 1.0)


def classifier_bias(backbone: Backbone) -> nn.Parameter:
    """The bias (classes,) of the last layer. Raises ModelError if there is none."""
    for part in (backbone.head, backbone):  # a model of timm keeps its classifier inside
        biases = [p for name, p in part.named_parameters() if name.endswith("bias") and len(p) == backbone.num_classes]
        if biases:
            return biases[-1]
    raise ModelError(f"the classifier of {backbone.preset} has no bias that could start elsewhere")
