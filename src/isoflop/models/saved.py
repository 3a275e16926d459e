"""A backbone in a folder of its own: `model.safetensors`, and `config.json` that says how to build and feed it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.errors import CheckpointError
from isoflop.models.backbone import Backbone
from isoflop.models.create import create_model

KEY = "isoflop"  # of our part of `config.json`, which other libraries leave alone
Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Description:
    """What `create_model` needs to build a backbone again, and its images to be fed to it.

    Attributes:
        preset, options: the name, and what replaces values of that preset.
        image_size: (height, width) in pixels.
        moments: mean and standard deviation of pixels in 0 … 1, per channel, where they are known.
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

    def build(self, image_size: int | None = None) -> Backbone:
        """The backbone with random weights, for its own image size or another."""
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
            "num_classes": self.num_classes,
            "image_size": list(self.image_size),
            "channels": self.channels,
            "mean": mean,
            "std": std,
            "class_names": list(self.class_names),
            "origin": self.origin,
        }


def describe_model(model: Backbone, options: dict[str, Any], **more: Any) -> Description:
    """The description of `model`, which was built with `options`; `more` is what the model does not know itself."""
    return Description(model.preset, options, model.num_classes, model.image_size, model.in_channels, **more)


def save_model(folder: Path, weights: dict[str, Tensor], description: Description) -> None:
    """Writes weights under our own names, and their description, into `folder`. OSError when the storage refuses."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"isoflop": description.preset})
    (folder / "config.json").write_text(json.dumps({KEY: description.to_dict()}, indent=1) + "\n", encoding="utf-8")


def read_description(config: dict[str, Any], where: Path | str) -> Description | None:
    """Our part of a `config.json`; None where it has none. CheckpointError where it lacks something."""
    found = config.get(KEY)
    if not isinstance(found, dict):
        return None
    try:
        options = {name: _hashable(value) for name, value in found["model"].items()}
        mean, std = found["mean"], found["std"]
        height, width = found["image_size"]
        return Description(
            preset=options.pop("name"),
            options=options,
            num_classes=found["num_classes"],
            image_size=(height, width),
            channels=found["channels"],
            moments=(tuple(mean), tuple(std)) if mean else None,
            class_names=tuple(found["class_names"]),
            origin=found["origin"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: its config.json does not describe a model: {error!r}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file; CheckpointError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable as weights: {' '.join(str(error).split())}") from error


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
