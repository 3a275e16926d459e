"""Lengths given in epochs, made into steps before a run is validated."""

from collections.abc import Mapping
from typing import Any

from isoflop.config.fields import problem

DEFAULT_BATCH = 64


def in_steps(raw: Any) -> Any:
    """`raw` with `steps` and `schedule.warmup` filled in from `epochs` and `warmup_epochs`, where these are given.

    Raises a problem where `data.epoch_images` is missing, or where both ways of saying it are used and differ.
    """
    if not isinstance(raw, Mapping):
        return raw
    epochs, warmup = (_number(raw.get(key)) for key in ("epochs", "warmup_epochs"))
    if epochs is None and warmup is None:
        return raw
    data = raw.get("data", {})
    images = _number(data.get("epoch_images")) if isinstance(data, Mapping) else data.epoch_images
    batch = _number(raw.get("batch_size", DEFAULT_BATCH))
    if images is None:
        key = "warmup_epochs" if epochs is None else "epochs"
        raise problem(key, "needs `data.epoch_images`, the number of images in an epoch")
    if not batch:
        return raw  # told where batch_size is validated
    told = dict(raw)
    if epochs is not None:
        steps = max(1, round(epochs * images / batch))
        if told.setdefault("steps", steps) != steps:
            raise problem("steps", f"= {told['steps']}, but `epochs` = {epochs:g} come to {steps}: {_choose('epochs')}")
    schedule = raw.get("schedule", {})
    if warmup is not None and isinstance(schedule, Mapping):
        steps = round(warmup * images / batch)
        told["schedule"] = {"warmup": steps, **schedule}
        if told["schedule"]["warmup"] != steps:
            given = told["schedule"]["warmup"]
            text = f"= {given}, but `warmup_epochs` = {warmup:g} come to {steps}: {_choose('warmup_epochs')}"
            raise problem("schedule.warmup", text)
    return told


def _choose(key: str) -> str:
    return f"give one of them (`{key}=none` takes the other away)"


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
