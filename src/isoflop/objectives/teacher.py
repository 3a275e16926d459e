"""The teacher of a distillation, from what a configuration calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from isoflop.config import DistilledConfig, stored_run
from isoflop.errors import CheckpointError, ConfigError, ModelError
from isoflop.models import Backbone, create_model
from isoflop.models.interop import read_weights
from isoflop.models.saved import Moments
from isoflop.runs.directory import published
from isoflop.runs.files import read_json


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
                    f"`objective.teacher` = {config.teacher}: knows {known} classes, the images are of {num_classes}"
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
