"""Distillation: a student learns from labels and from a frozen teacher (DeiT, arXiv 2012.12877, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models import Backbone
from isoflop.models.metaformer import MetaFormer
from isoflop.objectives.objective import Objective, Uniforms

Kind = Literal["hard", "soft"]
Through = Literal["token", "logits"]


class Distilled(Objective):
    """(1 − share)·cross-entropy(labels) + share·imitation of the teacher, in nats.

    A hard imitation is the cross-entropy with the teacher's answer (eq. 3), a soft one τ²·KL(teacher ‖ student) of
    probabilities at temperature τ (eq. 2). Through the "token", the class token learns the labels and the distillation
    token imitates, each with a head of its own; through the "logits", the same logits do both.

    The teacher is not a part of the module: it has no say in checkpoints and optimizers, and never trains. It sees the
    images times `scale` plus `shift`, per channel: as they were normalised when it learnt.

    Raises ModelError for a student without a distillation token, and a teacher with other classes, channels or images.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone,
        *,
        kind: Kind = "hard",
        through: Through = "token",
        share: float = 0.5,
        temperature: float = 3.0,
        label_smoothing: float = 0.0,
        scale: Sequence[float] | None = None,
        shift: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if through == "token" and not (isinstance(backbone, MetaFormer) and backbone.config.distilled):
            raise ModelError(
                f"{backbone.preset} has no distillation token: use `objective.through` = logits, or a model that has "
                "one (deit_ti16_distilled, deit_s16_distilled, deit_b16_distilled)"
            )
        for what in ("num_classes", "in_channels", "image_size"):
            ours, theirs = getattr(backbone, what), getattr(teacher, what)
            if ours != theirs:
                raise ModelError(f"the teacher {teacher.preset} has {what} = {theirs}, the student {ours}")
        self.backbone = backbone
        self.kind, self.through, self.share, self.temperature = kind, through, share, temperature
        self.label_smoothing = label_smoothing
        for part, value in (("scale", scale), ("shift", shift)):
            per_channel = None if value is None else torch.tensor(value).view(1, -1, 1, 1)
            self.register_buffer(part, per_channel, persistent=False)
        # Past the registration of submodules.
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))

    teacher: Backbone
    scale: Tensor | None
    shift: Tensor | None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """The teacher follows the student from device to device."""
        self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        """See `Objective.forward`; `labels` are class numbers, or shares of the classes (B, classes)."""
        with torch.no_grad():
            seen = images if self.scale is None or self.shift is None else images * self.scale + self.shift
            answers = self.teacher(seen).float()
        if self.through == "token" and isinstance(self.backbone, MetaFormer):
            logits, imitating = (part.float() for part in self.backbone.distilled_logits(images))
        else:
            logits = imitating = self.backbone(images).float()
        own = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return (1 - self.share) * own + self.share * self.imitation(imitating, answers)

    def imitation(self, logits: Tensor, answers: Tensor) -> Tensor:
        """How far the student's `logits` (B, classes) are from the teacher's, in nats an image."""
        if self.kind == "hard":
            return F.cross_entropy(logits, answers.argmax(dim=1))
        ours, theirs = (F.log_softmax(x / self.temperature, dim=1) for x in (logits, answers))
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> dict[str, Tensor]:
        """Sums over the batch, against the labels alone: cross-entropy (`loss`) and right answers (`accuracy`).

        A student with a distillation token answers with the mean of its two logits.
        """
        logits = self.backbone(images).float()
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum").double(),
            "accuracy": (logits.argmax(dim=1) == labels).sum().double(),
        }
