"""Prediction of memory, time and cost of a run, from counts on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.config import DistilledConfig, RunConfig, SupervisedConfig
from isoflop.errors import ConfigError, ModelError
from isoflop.models import cost, create_model
from isoflop.objectives import Objective, make_objective, objective_cost
from isoflop.train.device import Accelerator
from isoflop.train.layout import blocks
from isoflop.train.optim import freeze
from isoflop.train.optim.build import state_bytes
from isoflop.train.optim.gradients import PASSES
from isoflop.train.scaling import (
    MATRIX_SHARE,
    Communication,
    DeviceLayout,
    Memory,
    Reliability,
    StepTime,
    Workload,
    checkpoint_bytes,
    communication,
    memory,
    operators,
    reliability,
    step_time,
)


@dataclass(frozen=True)
class Forecast:
    """One run on `layout.devices` accelerators."""

    work: Workload
    layout: DeviceLayout
    device: Accelerator
    steps: int
    utilisation: float
    memory: Memory
    communication: Communication
    step: StepTime
    reliability: Reliability
    pretraining: Forecast | None = None
    """What is trained first."""

    @property
    def images(self) -> int:
        return self.steps * self.layout.batch_size

    @property
    def flops(self) -> float:
        """of training, pretraining included, without what is computed twice"""
        return self.images * self.work.flops_per_image + (self.pretraining.flops if self.pretraining else 0.0)

    @property
    def seconds(self) -> float:
        """of all steps, those of pretraining too, interruptions included"""
        before = self.pretraining.seconds if self.pretraining else 0.0
        return before + self.steps * self.step.total / max(self.reliability.goodput, 1e-9)

    @property
    def device_hours(self) -> float:
        return self.seconds * self.layout.devices / 3600

    @property
    def energy_kwh(self) -> float:
        """by the boards' limit alone"""
        return self.device_hours * self.device.watts / 1000

    @property
    def checkpoint_bytes(self) -> int:
        return checkpoint_bytes(self.work)

    @property
    def fits(self) -> bool:
        before = self.pretraining is None or self.pretraining.fits
        return before and self.memory.total <= self.device.memory_bytes


def forecast(
    config: RunConfig,
    device: Accelerator,
    devices: int = 1,
    *,
    num_classes: int | None = None,
    channels: int = 3,
    utilisation: float = MATRIX_SHARE,
) -> Forecast:
    """What `config` takes on `devices` of that accelerator. `num_classes` replaces `data.num_classes`.

    Raises ConfigError where the number of classes is known from neither, or there are more devices than images a step;
    ModelError as `create_model`.
    """
    classes = num_classes or config.data.num_classes
    if not classes:
        raise ConfigError("`data.num_classes` must be set to count a run without its data")
    if devices > config.batch_size:
        raise ConfigError(f"{devices} devices are more than the {config.batch_size} images of a step (`batch_size`)")
    work = workload(config, classes, channels)
    precision = "bfloat16" if config.precision == "auto" else config.precision  # which all in the table compute in
    layout = DeviceLayout(
        devices, config.batch_size, config.parallel.sharding, config.parallel.device_batch_size, precision
    )
    first = config.pretraining_run() if config.pretraining else None
    before = None
    if first:  # whose classes, where it has others, hardly count
        before = forecast(first, device, devices, num_classes=classes, channels=channels, utilisation=utilisation)
    return Forecast(
        work,
        layout,
        device,
        config.steps,
        utilisation,
        memory(work, layout),
        communication(work, layout, device),
        step_time(work, layout, device, utilisation),
        reliability(work, layout),
        before,
    )


def workload(config: RunConfig, num_classes: int, channels: int = 3) -> Workload:
    """Parameters, optimizer state, FLOPs and activations of `config`. A teacher is counted without its weights.

    Raises CheckpointError for a teacher in a folder that is not a finished run's.
    """
    shape = {"num_classes": num_classes, "image_size": config.data.image_size, "in_channels": channels}
    with torch.device("meta"):
        backbone = create_model(config.model.name, **shape, **config.model.overrides)  # type: ignore[arg-type]
        distilled = isinstance(config.objective, DistilledConfig)
        objective = make_objective(SupervisedConfig() if distilled else config.objective, backbone)
    freeze(objective, config.optim)
    parts = [sum(p.numel() for p in block.parameters()) for block in blocks(objective)]
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    counter = FlopCounterMode(display=False)
    with counter:
        two = _saved(objective, 2)  # not one, of which BatchNorm takes no statistics
    kept, recomputed = activations(two, _saved(objective, 3), config.parallel.recompute)
    forward = counter.get_total_flops() // 2

    def loss(images: int) -> Tensor:
        return _loss(objective, images)

    passes = PASSES if config.optim.sam else 1
    teacher = 0
    if isinstance(config.objective, DistilledConfig):
        if Path(config.objective.teacher).expanduser().is_dir():
            own = config.model.overrides
            teacher = 2 * objective_cost(config.objective, config.model.name, **shape, **own).frozen_macs  # type: ignore[arg-type]
        else:  # which may have no weights yet
            teacher = _teacher_flops(config.objective.teacher, shape)
    return Workload(
        parameters=parameters,
        largest_block=max([*parts, parameters - sum(parts)]),
        blocks=len(parts),
        state_bytes=state_bytes(objective, config.optim),
        flops_per_image=float(3 * forward + teacher) * passes,
        activation_bytes=kept,
        recomputed_flops_per_image=recomputed * forward * passes,
        operators=operators(loss),
        passes=passes,
        frozen_flops_per_image=float(teacher),
    )


def _teacher_flops(preset: str, shape: dict[str, Any]) -> int:
    try:
        return cost(preset, **shape).flops
    except ModelError as error:  # not of the model that is trained, as it would be told
        raise ConfigError(f"`objective.teacher` = {preset}: {error}") from error


def activations(fewer: Saved, more: Saved, recompute: int = 0) -> tuple[float, float]:
    """Bytes that an image keeps for the backward pass in bfloat16, and the share of blocks that run forward twice.

    Half of what a batch keeps more, in float32, than one of an image less: what depends on weights alone is kept
    once. With `recompute` k, every k-th block keeps its input only, and the largest of these is whole once at a time.
    """
    pairs = zip(fewer.blocks, more.blocks, strict=True)
    each = [((b.inside - a.inside) / 2, (b.input - a.input) / 2) for a, b in pairs]
    total = (more.total - fewer.total) / 2
    if not recompute or not each:
        return total, 0.0
    chosen = each[::recompute]
    spared = sum(inside - start for inside, start in chosen)
    return total - spared + max(inside for inside, _ in chosen), len(chosen) / len(each)


@dataclass
class BlockBytes:
    """Bytes kept inside a block, and those of its input."""

    inside: int
    input: int


@dataclass
class Saved:
    """Bytes kept for the backward pass, in all and by block."""

    total: int
    blocks: list[BlockBytes]


def _loss(objective: Objective, count: int) -> Tensor:
    """The loss of `count` images on the meta device."""
    backbone = objective.backbone
    images = torch.empty(count, backbone.in_channels, *backbone.image_size, device="meta")

    def uniforms(stream: str, width: int) -> Tensor:
        return torch.empty(count, width, device="meta")

    loss: Tensor = objective(images, torch.zeros(count, dtype=torch.int64, device="meta"), uniforms)
    return loss


def _saved(objective: Objective, count: int) -> Saved:
    """Bytes saved for `count` images, in all and by block, of a model in float32 on the meta device."""
    kept: dict[int, Tensor] = {}
    total = 0
    found: list[BlockBytes] = []

    def remember(tensor: Tensor) -> Tensor:
        nonlocal total
        key = tensor.untyped_storage()._cdata
        if key not in kept:
            kept[key] = tensor  # holding it keeps its key unique
            total += tensor.untyped_storage().nbytes()
        return tensor

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(BlockBytes(-total, inputs[0].numel() * inputs[0].element_size()))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        found[-1].inside += total

    hooks = []
    for block in blocks(objective):
        hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    objective.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = _loss(objective, count)
        del loss
    finally:
        for hook in hooks:
            hook.remove()
    return Saved(total, found)


# What a run costs in FLOPs.


def train_flops_per_image(config: RunConfig, num_classes: int, channels: int) -> float:
    """Training FLOPs of one image: 3 × forward (2 × MACs), twice that with sharpness-aware minimisation."""
    counted = objective_cost(
        config.objective,
        config.model.name,
        num_classes=num_classes or 1,
        image_size=config.data.image_size,
        in_channels=channels,
        **config.model.overrides,
    )
    return float(counted.train_flops_per_image) * (PASSES if config.optim.sam else 1)
