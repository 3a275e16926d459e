"""A backbone in a folder: `model.safetensors`, and `config.json` with its architecture and preprocessing."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from isoflop.config import REVISION, is_revised
from isoflop.errors import CheckpointError, ModelError
from isoflop.models.backbone import Backbone
from isoflop.models.create import create_model

KEY = "isoflop"  # of our part of `config.json`, which other libraries leave alone
_LARGEST_OPTION, _MOST_BLOCKS = 1 << 20, 512  # that a stranger's description may ask for
_PARAMETERS_A_BYTE, _ALWAYS_ALLOWED = 2, 1 << 24  # of a description, beside the file of its weights
_DEPTHS = ("depth", "depths", "layers", "num_blocks", "stages", "block_config", "depth_list")
Moments = tuple[tuple[float, ...], tuple[float, ...]]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Description:
    """What `create_model` needs to build a backbone again, and its images to be fed to it.

    Attributes:
        preset, options: the name, and what replaces values of that preset.
        image_size: (height, width) in pixels.
        moments: mean and standard deviation of pixels in 0 … 1, per channel, where they are known.
        interpolation: how pictures are resized for it.
        sigmoid: whether each class has a probability of its own.
        class_names: one for each logit, or nothing.
        origin: where the weights come from, for people.
    """

    preset: str
    options: dict[str, Any]
    num_classes: int
    image_size: tuple[int, int]
    channels: int
    moments: Moments | None = None
    class_names: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    interpolation: Interpolation = "bilinear"
    sigmoid: bool = False

    def build(self, image_size: int | None = None, weights: Path | None = None) -> Backbone:
        """The backbone with random weights, for its own image size or another.

        Raises ModelError where it would be far larger than the file of its `weights`: it may be a stranger's.
        """
        if weights is not None and weights.is_file():
            most = _PARAMETERS_A_BYTE * weights.stat().st_size + _ALWAYS_ALLOWED
            with suppress(ModelError), torch.device("meta"):  # what cannot be built is told below
                count = sum(parameter.numel() for parameter in self._made(image_size).parameters())
                if count > most:
                    raise CheckpointError(
                        f"{weights.parent}: its config.json describes {count:,} parameters, and {weights.name} holds "
                        f"{weights.stat().st_size:,} bytes"
                    )
        return self._made(image_size)

    def _made(self, image_size: int | None) -> Backbone:
        return create_model(
            self.preset,
            num_classes=self.num_classes,
            image_size=image_size or self.image_size,
            in_channels=self.channels,
            seed=0,
            **self.options,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        mean, std = self.moments or (None, None)
        return {
            "model": {"name": self.preset, **self.options},
            "revision": REVISION,
            "num_classes": self.num_classes,
            "image_size": list(self.image_size),
            "channels": self.channels,
            "mean": mean,
            "std": std,
            "class_names": list(self.class_names),
            "origin": self.origin,
            "interpolation": self.interpolation,
            "sigmoid": self.sigmoid,
        }


def describe_model(model: Backbone, options: dict[str, Any], **more: Any) -> Description:
    """The description of `model`, which was built with `options`; `more` is what the model does not know itself."""
    return Description(model.preset, options, model.num_classes, model.image_size, model.in_channels, **more)


def save_model(folder: Path, weights: dict[str, Tensor], description: Description) -> None:
    """Writes weights under our own names, and their description, into `folder`. OSError when the storage refuses."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    said = metadata_of(description.preset, description.options.get("revision", REVISION))
    save_file(whole, folder / "model.safetensors", metadata=said)
    (folder / "config.json").write_text(json.dumps({KEY: description.to_dict()}, indent=1) + "\n", encoding="utf-8")


def metadata_of(preset: str, revision: int) -> dict[str, str]:
    """What a file of weights says about itself where it lies alone.

    One entry: safetensors writes several in an order of chance, and equal weights are to be equal files.
    """
    return {"isoflop": f"{preset} {revision}"}


def preset_in(metadata: dict[str, str]) -> tuple[str | None, dict[str, Any]]:
    """The preset that a file's metadata name, with its revision as an option where it is not that of now."""
    preset, _, revision = metadata.get("isoflop", "").partition(" ")
    revision = revision or metadata.get("revision", "1")
    earlier = bool(preset) and is_revised(preset, {}) and revision.isdecimal() and int(revision) < REVISION
    return preset or None, {"revision": int(revision)} if earlier else {}


def read_description(config: dict[str, Any], where: Path | str) -> Description | None:
    """Our part of a `config.json`; None where it has none. CheckpointError where it lacks something."""
    found = config.get(KEY)
    if not isinstance(found, dict):
        return None
    try:
        options = dict(found["model"])
        if found.get("revision", 1) < REVISION and is_revised(options["name"], options):
            options.setdefault("revision", found.get("revision", 1))
        return checked_description(
            where,
            preset=options.pop("name"),
            options=options,
            num_classes=found["num_classes"],
            image_size=found["image_size"],
            channels=found["channels"],
            moments=(found["mean"], found["std"]) if found["mean"] else None,
            class_names=found["class_names"],
            origin=found["origin"],
            interpolation=found.get("interpolation", "bilinear"),
            sigmoid=found.get("sigmoid", False),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: its config.json does not describe a model: {error!r}") from error


def checked_description(where: Path | str, **fields: Any) -> Description:
    """The description of what a stranger's `config.json` at `where` says; CheckpointError for wrong types.

    Its weights lie beside it: an option that says where to get others has no effect.
    """
    options = fields["options"] = architecture_of({name: _hashable(v) for name, v in fields.get("options", {}).items()})
    try:
        made: Description = TypeAdapter(Description).validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{where}: its config.json does not describe a model: `{place}`: {first['msg']}"
        ) from error
    for name in ("num_classes", "image_size", "in_channels", "seed"):
        if name in options:
            raise CheckpointError(f"{where}: its config.json has `{name}` among the options of the model")
    for name, value in options.items():
        if max((abs(number) for number in _numbers(value)), default=0) > _LARGEST_OPTION:
            raise CheckpointError(f"{where}: its config.json has `{name}` = {value}: no model is as large")
        if name in _DEPTHS and sum(_numbers(value)) > _MOST_BLOCKS:
            raise CheckpointError(f"{where}: its config.json has `{name}` = {value}: no model is as deep")
    if made.moments and any(len(values) != made.channels for values in made.moments):
        raise CheckpointError(
            f"{where}: its config.json has a mean or deviation for other than {made.channels} channels"
        )
    return made


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) else []


def architecture_of(options: dict[str, Any]) -> dict[str, Any]:
    """`options` of a model whose weights lie beside its description: none of them says that others are to be had."""
    return {name: value for name, value in options.items() if name != "pretrained"}


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
