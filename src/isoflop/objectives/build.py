"""Creation of an objective from its configuration, and the cost of its training step."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.config import (
    DetectConfig,
    DistilledConfig,
    LeJEPAConfig,
    MaskedConfig,
    ObjectiveConfig,
    SegmentConfig,
    SupervisedConfig,
    UnlabelledConfig,
    canonical_json,
)
from isoflop.data import Source
from isoflop.errors import DataError, ModelError
from isoflop.models import Backbone, Cost, cost, create_model
from isoflop.models.saved import Moments
from isoflop.objectives.distilled import Distilled, load_teacher, open_teacher, teacher_moments
from isoflop.objectives.lejepa import LeJEPA
from isoflop.objectives.masked import Masked
from isoflop.objectives.supervised import Objective, Supervised


def make_objective(
    config: ObjectiveConfig,
    backbone: Backbone,
    *,
    seed: int = 0,
    label_smoothing: float = 0.0,
    has_several_labels: bool = False,
    moments: Moments | None = None,
) -> Objective:
    """What `backbone` learns by `config`; `seed` decides the weights of what is put on it, and `moments` are mean and
    standard deviation by which its images are normalised, from which a teacher's may differ.

    Raises ModelError, ConfigError or CheckpointError for what cannot be; see each objective.
    """
    match config:
        case SupervisedConfig():
            return Supervised(
                backbone,
                loss=config.loss,
                head_bias=config.head_bias,
                label_smoothing=label_smoothing,
                has_several_labels=has_several_labels,
            )
        case MaskedConfig():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return Masked(
                    backbone,
                    ratio=config.ratio,
                    sampler=config.sampler,
                    normalise=config.normalise,
                    decoder_depth=config.decoder_depth,
                    decoder_width=config.decoder_width,
                    decoder_heads=config.decoder_heads,
                )
        case LeJEPAConfig():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return LeJEPA(backbone, **config.model_dump(exclude={"name"}), moments=moments)
        case DetectConfig() | SegmentConfig():
            # Here, since torchvision takes its time with them.
            from isoflop.objectives.dense.detector import Detector
            from isoflop.objectives.dense.segmenter import Segmenter

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                if isinstance(config, DetectConfig):
                    return Detector(backbone, config, backbone.num_classes)
                return Segmenter(backbone, config, backbone.num_classes)
        case DistilledConfig():
            if has_several_labels:
                raise ModelError("distillation is for images of one class each, and these may have several")
            theirs = teacher_moments(config)
            scale = shift = None
            if moments and theirs and moments != theirs and len(moments[0]) == len(theirs[0]):
                scale = [ours / other for ours, other in zip(moments[1], theirs[1], strict=True)]
                shift = [(ours - a) / b for ours, a, b in zip(moments[0], *theirs, strict=True)]
            return Distilled(
                backbone,
                load_teacher(config, backbone),
                scale=scale,
                shift=shift,
                kind=config.kind,
                through=config.through,
                share=config.share,
                temperature=config.temperature,
                label_smoothing=label_smoothing,
            )


def objective_cost(
    config: ObjectiveConfig,
    model: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    **overrides: object,
) -> Cost:
    """Parameters and MACs of the forward pass of one image in training, decoder and teacher included.

    For labels that is the cost of the model. A masked autoencoder is counted as it runs: a plain ViT on visible patches
    alone, a pyramid on whole maps, of which the hidden cells are computed and not used. The backbone's parameters
    that it does not train (the classifier) are not counted. Raises as `make_objective`.
    """
    shape = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
    if isinstance(config, SupervisedConfig):
        return cost(model, **shape, **overrides)  # type: ignore[arg-type]
    if isinstance(config, DistilledConfig):
        student = cost(model, **shape, **overrides)  # type: ignore[arg-type]
        size = image_size if isinstance(image_size, int) else (image_size[0], image_size[1])
        frozen = _teacher_macs(config, canonical_json(config), num_classes, size, in_channels)
        return dataclasses.replace(student, frozen_macs=frozen)
    with torch.device("meta"):
        objective = make_objective(config, create_model(model, **shape, **overrides))  # type: ignore[arg-type]
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    return Cost(trained, _macs(objective))


@functools.lru_cache(maxsize=64)
def _teacher_macs(
    config: DistilledConfig, identity: str, num_classes: int, image_size: int | tuple[int, int], in_channels: int
) -> int:
    """Of a teacher, which is loaded for it once for all students; `identity` tells its weights from later ones."""
    return _macs(open_teacher(config, num_classes, image_size, in_channels).to("meta"))


def _macs(module: Objective | Backbone) -> int:
    """Multiply-adds of a forward pass of one image by a module that lies on the meta device."""
    backbone = module.backbone if isinstance(module, Objective) else module
    images = torch.empty(1, backbone.in_channels, *backbone.image_size, device="meta")

    def uniforms(stream: str, count: int) -> Tensor:
        return torch.empty(1, count, device="meta")

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        if isinstance(module, Objective):
            module.eval()(images, torch.zeros(1, dtype=torch.int64, device="meta"), uniforms)
        else:
            module.eval()(images)
    return counter.get_total_flops() // 2


# Whether an objective can learn from what a source has.


_WHAT = {"detect": "objects", "segment": "maps of classes"}
_WHERE = {"detect": "coco:FOLDER or scenes?", "segment": "ade20k:FOLDER or scenes?task=segment"}


def check_fit(config: ObjectiveConfig, source: Source, *, mixes: bool) -> None:
    """Raises DataError where the truth of `source` is not what `config` learns from, or Mixup (`mixes`) is asked for
    where nothing can be mixed."""
    has = source.task
    if isinstance(config, DetectConfig | SegmentConfig):
        if has != config.name:
            told = _WHAT[has] if has else "classes alone"
            raise DataError(
                f"{source.uri}: the objective `{config.name}` needs {_WHAT[config.name]} ({_WHERE[config.name]}), "
                f"and these pictures have {told}"
            )
        if mixes:
            raise DataError(f"{source.uri}: Mixup and CutMix mix classes, not {_WHAT[config.name]}")
        if isinstance(config, DetectConfig) and config.head == "mask_rcnn" and not source.has_masks:
            raise DataError(f"{source.uri}: Mask R-CNN learns from masks: ask for them (`masks=1`), or use RetinaNet")
    elif has and not isinstance(config, UnlabelledConfig):
        raise DataError(f"{source.uri}: these pictures have {_WHAT[has]}, not a class each: set `objective` to {has}")
