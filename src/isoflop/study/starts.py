"""Trained weights that families of a study start from: opened, tried with frozen features, and given a classifier.

A few of the training images pass through each backbone once. Logistic regression on their features is a contender by
itself, the classifier that fine-tuning begins with (linear probing then fine-tuning, arXiv 2202.10054), and what tells
many weights apart before any of them is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from isoflop.config import (
    DataConfig,
    DistilledConfig,
    FamilyConfig,
    RunConfig,
    StartConfig,
    StudyConfig,
    SupervisedConfig,
)
from isoflop.data import Source, open_split
from isoflop.data.opening import part_of
from isoflop.errors import CheckpointError, ModelError, StudyError
from isoflop.escapes import printable
from isoflop.models import Backbone, create_model
from isoflop.models.saved import architecture_of
from isoflop.runs.files import cache_directory
from isoflop.train.identity import check_classes, has_classifier
from isoflop.train.start import load_trunk
from isoflop.transfer import Pretrained, open_backbone
from isoflop.transfer.features import features_of
from isoflop.transfer.few_shot import logistic
from isoflop.transfer.finetune import save_weights

PROBED = 2000  # training images that pass through the weights, at most; a frozen backbone wants few
ITERATIONS = 100  # of the probe, with which fine-tuning only begins
JUDGED = 500  # held-out images that tell how good the probe is
TRIED, TRIED_IMAGES = 5, 300
"""More weights than `TRIED` are first told apart by the features of so many images; so many are fine-tuned."""


@dataclass(frozen=True)
class Probe:
    """Logistic regression on frozen features of `images` training images: its weight (classes, D) and bias (classes,),
    and accuracy and loss on `judged` held-out images."""

    images: int
    weight: Tensor
    bias: Tensor
    accuracy: float
    loss: float
    judged: int


@dataclass(frozen=True)
class Start:
    """Weights that a family starts from.

    Attributes:
        pretrained: their backbone, at the image size of the family. data: the images as it wants them.
        config: of the family, with the model of the weights in it.
        probe: None where the classifier is another one, or the objective learns none.
    """

    pretrained: Pretrained
    data: DataConfig
    config: FamilyConfig
    probe: Probe | None
    _files: dict[int | None, tuple[Path, Literal["new", "keep"]]] = field(default_factory=dict, compare=False)

    def of_run(self, config: RunConfig) -> RunConfig:
        """`config` with the weights, the classifier, and images of size and normalisation of the weights."""
        data = config.data.model_copy(
            update={name: getattr(self.data, name) for name in ("image_size", "mean", "std", "interpolation")}
        )
        images = config.data.images
        if images not in self._files:  # asked for every run that is planned
            self._files[images] = self._weights(images)
        path, head = self._files[images]
        assert self.config.start
        frozen = self.config.start.freeze_batchnorm
        start = StartConfig(weights=str(path), head=head, freeze_batchnorm=frozen)
        return config.model_copy(update={"data": data, "start": start})

    def _weights(self, images: int | None) -> tuple[Path, Literal["new", "keep"]]:
        """The file of weights for runs on `images` of the training images (None: all), and their `start.head`."""
        assert self.config.start
        if self.probe is None:
            return _stored(self.pretrained, None), self.config.start.run_head
        probe = self.probe
        if images is not None and images < probe.images:
            probe = _probe(self.pretrained, self.data, images)
        return _stored(self.pretrained, probe), "keep"

    @property
    def summary(self) -> dict[str, Any]:
        """For the answer: what the weights are, and how good they are as they are."""
        assert self.config.start
        probe = self.probe
        return {
            "weights": self.config.start.weights,
            "model": self.pretrained.preset,
            "image_size": self.data.image_size,
            "licence": licence_of(self.pretrained, self.config.start.weights),
            "probe": probe
            and {
                "images": probe.images,
                "accuracy": probe.accuracy,
                "loss": probe.loss,
                "judged": probe.judged,
            },
        }


def open_starts(config: StudyConfig) -> tuple[StudyConfig, dict[str, Start], dict[str, str]]:
    """`config` with the models of the weights that its families start from, these weights, and why some families are
    left out: those whose frozen features are worst, where there are more than `TRIED`.

    Raises CheckpointError for weights that are not there or of another model than the family names.
    """
    named = {name: family for name, family in config.families.items() if family.start}
    if not named:
        return config, {}, {}
    found = {name: _opened(config, name, family) for name, family in named.items()}
    left_out: dict[str, str] = {}
    if len(found) > TRIED and _is_classified(config.data):
        tried = {name: _probe(start.pretrained, start.data, TRIED_IMAGES).accuracy for name, start in found.items()}
        order = sorted(tried, key=lambda name: -tried[name])
        last = tried[order[TRIED - 1]]
        left_out = {
            name: f"frozen features of {TRIED_IMAGES} images give {tried[name]:.1%}, the {TRIED}th best {last:.1%}"
            for name in order[TRIED:]
        }
        found = {name: start for name, start in found.items() if name not in left_out}
    probed = {
        name: replace(start, probe=_probe(start.pretrained, start.data, PROBED))
        if _has_probe(config, name, start)
        else start
        for name, start in found.items()
    }
    families = {
        name: probed[name].config if name in probed else family
        for name, family in config.families.items()
        if name not in left_out
    }
    return config.model_copy(update={"families": families}), probed, left_out


def _opened(config: StudyConfig, name: str, family: FamilyConfig) -> Start:
    assert family.start
    where = f"families.{name}.start.weights"
    side = family.image_size or config.data.image_size
    try:
        pretrained = open_backbone(family.start.weights, image_size=side)
    except (CheckpointError, ModelError) as error:
        raise CheckpointError(f"`{where}`: {error}") from error
    sizes = family.sizes if isinstance(family.sizes, tuple) else (pretrained.preset,)
    if sizes != (pretrained.preset,):
        raise CheckpointError(
            f"`{where}` = {printable(family.start.weights)}: weights of {pretrained.preset}, "
            f"but `sizes` names {sizes[0]}"
        )
    data = config.data.model_copy(update={"image_size": side})
    channels = open_split(data, "train").channels
    if channels != pretrained.model.in_channels:
        raise StudyError(
            f"`{where}`: trained on images of {pretrained.model.in_channels} channels, and those of {data.source} have "
            f"{channels}"
        )
    if pretrained.moments and data.mean is None:
        data = data.model_copy(update=dict(zip(("mean", "std"), pretrained.moments, strict=True)))
    if pretrained.interpolation == "bicubic" and data.interpolation == "bilinear":
        data = data.model_copy(update={"interpolation": "bicubic"})
    if family.start.head == "keep":
        _check_kept(where, pretrained, open_split(data, "train"))
    model = {**architecture_of(pretrained.options), **family.model}
    own = family.model_copy(update={"sizes": sizes, "model": model})
    return Start(pretrained, data, own, None)


def _check_kept(where: str, pretrained: Pretrained, source: Source) -> None:
    """Raises StudyError or DataError where the classifier of weights is not one of the classes of `source`."""
    knows = pretrained.run is None or has_classifier(str(pretrained.run))
    if "classifier" in pretrained.origin or not knows:
        raise StudyError(f"`{where}`: these weights have no classifier to keep: leave `start.head` out")
    if pretrained.model.num_classes != source.num_classes:
        raise StudyError(
            f"`{where}`: a classifier of {pretrained.model.num_classes:,} classes, and {source.uri} has "
            f"{source.num_classes:,}: leave `start.head` out"
        )
    check_classes(f"`{where}`", pretrained.class_names, source)


def _has_probe(config: StudyConfig, name: str, start: Start) -> bool:
    """Whether runs start with the classifier of the probe: that of the model is linear, and each image of one class."""
    assert start.config.start
    return (
        start.config.start.head == "probe"
        and start.config.pretraining is None  # after which no classifier is left
        and isinstance(config.objective_of(name), SupervisedConfig | DistilledConfig)
        and _is_classified(start.data)
        and _linear(start.pretrained.model) is not None
    )


def _is_classified(data: DataConfig) -> bool:
    """Whether each image is of one of several classes."""
    source = open_split(data, "heldout")
    return source.num_classes > 1 and not source.has_several_labels and source.task is None


def _linear(model: Backbone) -> str | None:
    """The name of the classifier of `model` where that is one linear layer on its features; else None."""
    names = [name for name in model.classifier() if name in dict(model.named_modules())]
    if len(names) != 1:
        return None
    head = model.get_submodule(names[0])
    return names[0] if isinstance(head, nn.Linear) and head.in_features == model.num_features else None


def _probe(pretrained: Pretrained, data: DataConfig, images: int) -> Probe:
    """The probe on so many training images, all if there are fewer: the part of them that `data.images` would be."""
    train, heldout = open_split(data.model_copy(update={"images": None}), "train"), open_split(data, "heldout")
    some = _labelled(part_of(train, min(images, data.images or images, len(train)), data.seed))
    judged = _labelled(part_of(heldout, min(JUDGED, len(heldout)), data.seed))
    labels, truth = some.labels(), judged.labels()
    head = pretrained.model.get_submodule(_linear(pretrained.model) or "")
    intercept = getattr(head, "bias", None) is not None
    weight, bias = logistic(
        features_of(pretrained, some), labels, train.num_classes, intercept=intercept, iterations=ITERATIONS
    )
    logits = features_of(pretrained, judged).double() @ weight.T + bias
    right = float((logits.argmax(1) == truth).double().mean())
    return Probe(len(some), weight, bias, right, float(F.cross_entropy(logits, truth)), len(judged))


def _labelled(source: Source) -> Source:
    """The images of `source` whose class is known."""
    known = source.labels() >= 0
    return source if bool(known.all()) else source.subset(np.flatnonzero(known.numpy()))


def _stored(pretrained: Pretrained, probe: Probe | None) -> Path:
    """A file of the weights, with the classifier of `probe` if there is one, named after its content."""
    if probe is not None:
        pretrained = replace(pretrained, model=_with_classifier(pretrained, probe))
    folder = cache_directory() / "starts"
    try:
        return save_weights(pretrained, folder)
    except (OSError, SafetensorError) as error:
        why = " ".join(str(error).split())
        raise StudyError(
            f"{folder}: cannot write the weights that runs start from: {why}; set ISOFLOP_CACHE"
        ) from error


def _with_classifier(pretrained: Pretrained, probe: Probe) -> Backbone:
    """The backbone with the classifier of `probe`."""
    own = pretrained.model
    model = create_model(
        pretrained.preset,
        num_classes=len(probe.bias),
        image_size=own.image_size,
        in_channels=own.in_channels,
        seed=0,
        **architecture_of(pretrained.options),
    )
    load_trunk(model, own.state_dict(), pretrained.name, with_head=False)
    head = model.get_submodule(_linear(model) or "")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        if head.bias is not None:
            head.bias.copy_(probe.bias)
    return model


def cached_weights() -> tuple[str, ...]:
    """The weights of timm that are in the cache of the Hugging Face hub, as `timm:NAME`, whose models timm has."""
    import timm
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return ()
    names = {
        repo.repo_id.removeprefix("timm/")
        for repo in repos
        if repo.repo_id.startswith("timm/")
        and any(file.file_name == "model.safetensors" for version in repo.revisions for file in version.files)
    }
    return tuple(f"timm:{name}" for name in sorted(names) if timm.is_model(name))


def licence_of(pretrained: Pretrained, weights: str) -> str | None:
    """The licence of the weights, where timm or the model card beside them tells it."""
    folder = Path(weights).expanduser()
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip() or None
    inner = getattr(pretrained.model, "model", None)
    known: Mapping[str, Any] = getattr(inner, "pretrained_cfg", None) or {}
    licence = known.get("license")
    return str(licence) if licence else None
