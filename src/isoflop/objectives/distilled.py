"""Distillation: a student learns from labels and from a frozen teacher (DeiT, arXiv 2012.12877, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from isoflop.config import DistilledConfig, stored_run
from isoflop.errors import CheckpointError, ConfigError, ModelError
from isoflop.models import Backbone, create_model
from isoflop.models.interop import read_weights
from isoflop.models.metaformer import MetaFormer
from isoflop.models.saved import Moments
from isoflop.models.user_code import check_stored
from isoflop.objectives.supervised import Objective, Uniforms, at_temperatures
from isoflop.runs.directory import published
from isoflop.runs.files import read_json

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
            **(at_temperatures(logits, labels) if self.calibrates else {}),
        }


# The teacher of a distillation, from what a configuration calls it.


def load_teacher(config: DistilledConfig, student: Backbone) -> Backbone:
    """The trained model that `config.teacher` names, for the classes, channels and images of `student`.

    Raises as `open_teacher`.
    """
    return open_teacher(config, student.num_classes, student.image_size, student.in_channels)


def open_teacher(
    config: DistilledConfig, num_classes: int, image_size: int | tuple[int, int], in_channels: int
) -> Backbone:
    """The trained model that `config.teacher` names, for a student of so many classes, such images and channels.

    It is the folder of a finished run; or a preset with `teacher_weights`; or `timm:NAME`, with timm's own weights
    when no others are given. Raises ConfigError when there is no such model or there are no weights, CheckpointError
    when they are of another model.
    """
    shape = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels, "seed": 0}
    folder = Path(config.teacher).expanduser()
    try:
        if folder.is_dir():
            if config.teacher_weights:
                raise ConfigError("`objective.teacher_weights` is for a preset, and `objective.teacher` is a folder")
            name, overrides, weights = _run(folder)
            return _filled(create_model(name, **{**shape, **overrides}), weights)  # type: ignore[arg-type]
        if config.teacher_weights:
            return _filled(create_model(config.teacher, **shape), Path(config.teacher_weights).expanduser())  # type: ignore[arg-type]
        if config.teacher.startswith("timm:"):
            known = _published(config.teacher)["num_classes"]
            if known != num_classes:  # timm would replace its classifier by a random one
                raise ConfigError(
                    f"`objective.teacher` = {config.teacher}: has {known} classes, the images have {num_classes}"
                )
            return create_model(config.teacher, pretrained=True, **shape)  # type: ignore[arg-type]
    except ModelError as error:  # not of the student, as it would be told
        raise ConfigError(f"`objective.teacher` = {config.teacher}: {error}") from error
    raise ConfigError(
        f"`objective.teacher` = {config.teacher}: not the folder of a finished run, and a preset needs "
        "`objective.teacher_weights`"
    )


def teacher_moments(config: DistilledConfig) -> Moments | None:
    """Mean and standard deviation, per channel, by which the images of the teacher were normalised; None where nobody
    says: weights in a file have them from whoever wrote it."""
    facts = Path(config.teacher).expanduser() / "data.json"
    try:
        if facts.is_file():
            found = read_json(facts)
        elif config.teacher.startswith("timm:") and not config.teacher_weights:
            found = _published(config.teacher)
        else:
            return None
        return tuple(found["mean"]), tuple(found["std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{facts}: not readable: {error!r}") from error


def _published(name: str) -> dict[str, Any]:
    """What timm says of its own weights for `timm:NAME`."""
    import timm  # a second to import

    config = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    if config is None:
        raise ConfigError(f"`objective.teacher` = {name}: timm has no weights of that name")
    return vars(config)


def _run(folder: Path) -> tuple[str, dict[str, object], Path]:
    """Name, overrides and weight file of the model that a finished run trained."""
    try:
        weights = published(folder)
    except CheckpointError as error:
        raise CheckpointError(f"`objective.teacher` = {error}") from error
    config = stored_run(read_json(folder / "config.json"), str(folder / "config.json"))
    check_stored(config.model.code, folder)
    return config.model.name, dict(config.as_trained().model.overrides), weights


def _filled(model: Backbone, weights: Path) -> Backbone:
    try:
        model.load_state_dict(read_weights(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(
            f"{weights}: not the weights of {model.preset} for {model.num_classes} classes and images of "
            f"{model.image_size[0]}x{model.image_size[1]} pixels, as the student has: {told}"
        ) from error
    return model
