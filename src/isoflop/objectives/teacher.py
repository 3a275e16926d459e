"""The teacher of a distillation, from what a configuration calls it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError

from isoflop.config import DistilledConfig, RunConfig, parse
from isoflop.errors import CheckpointError, ConfigError
from isoflop.models import Backbone, create_model
from isoflop.models.interop import read_weights


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
    when no others are given. Raises ConfigError when there are no weights, CheckpointError when they cannot be read or
    are of another model.
    """
    shape = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels, "seed": 0}
    folder = Path(config.teacher).expanduser()
    if folder.is_dir():
        name, overrides, weights = _run(folder)
        return _filled(create_model(name, **{**shape, **overrides}), weights)  # type: ignore[arg-type]
    if config.teacher_weights:
        return _filled(create_model(config.teacher, **shape), Path(config.teacher_weights).expanduser())  # type: ignore[arg-type]
    if config.teacher.startswith("timm:"):
        try:
            return create_model(config.teacher, pretrained=True, **shape)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise CheckpointError(f"`objective.teacher` = {config.teacher}: no weights of timm's: {told}") from error
    raise ConfigError(
        f"`objective.teacher` = {config.teacher}: not the folder of a finished run, and a preset needs "
        "`objective.teacher_weights`"
    )


def _run(folder: Path) -> tuple[str, dict[str, object], Path]:
    """Name, overrides and weight file of the model that a finished run trained."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"`objective.teacher` = {folder}: not a finished run (no model.safetensors)")
    try:
        config = parse(json.loads((folder / "config.json").read_text()), RunConfig, str(folder / "config.json"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: not readable: {error}") from error
    return config.model.name, dict(config.model.overrides), weights


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
