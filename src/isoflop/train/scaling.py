"""Predicted cost on many devices: memory, communication, time of a step, checkpoints, failures.

Sizes are bytes, times seconds, and rates those of data sheets. docs/scaling.md has the formulas and assumptions. P is
the number of parameters, W that of devices, H of hosts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from isoflop.train.device import Accelerator
from isoflop.train.sharded import BUCKET

# The operators of a training step and what each moves, and how long they take at the rates of a device.
#
# An operator takes the longer of its arithmetic at the peak and its bytes at the rate of the memory: matrix products of
# large matrices are bound by the first, normalisation, pooling and pointwise operators by the second (Williams et al.,
# 2009). Operators are those that run one by one, without a compiler that joins them.


TRACED = (2, 4)  # images of the two steps whose difference is what an image adds


@dataclass(frozen=True)
class Operator:
    """`count` alike operators of a step: FLOPs of an image, bytes of an image and of a step whatever its images."""

    flops: float
    bytes: float
    fixed_bytes: float
    count: int = 1

    def seconds(self, images: float, flops_rate: float, memory_rate: float) -> float:
        """of all of them, on that many images at the rates that a device reaches"""
        arithmetic = self.flops * images / flops_rate
        return self.count * max(arithmetic, (self.bytes * images + self.fixed_bytes) / memory_rate)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes FLOPs and bytes of each operator that does anything; numbers have two bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[str, float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.name in _FREE:
            return out
        flops = _flops(func, args, kwargs or {}, out)
        tensors = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        each = FLOAT32_BYTES if func._schema.name in _FLOAT32 else 2.0
        moved = sum(each * _touched(t) for t in tensors.values() if t.is_floating_point())
        if flops or moved:
            self.found.append((func._schema.name, flops, moved))
        return out


_FREE = {f"aten::{name}" for name in ("detach", "_to_copy", "empty_like", "empty", "new_empty", "_unsafe_view", "lift")}

FLOAT32_BYTES = 6.0
"""of a number of an operator that autocast does in float32: it is read as that, and written once more by the cast"""
_FLOAT32 = {
    f"aten::{name}{end}"
    for name in ("native_layer_norm", "native_group_norm", "_softmax", "_log_softmax")
    for end in ("", "_backward", "_backward_data")
}


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    if func._overloadpacket is torch.ops.aten.convolution_backward:
        # PyTorch's formula forgets groups. Each gradient that is asked for is as many products as the convolution.
        gradient, weight = args[0], args[2]
        return float(2 * gradient.numel() * weight[0].numel() * sum(args[-1][:2]))
    formula = flop_registry.get(func._overloadpacket)
    return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


def _touched(tensor: Tensor) -> int:
    """Numbers that lie in memory: what is broadcast is read once."""
    return tensor.numel() if 0 not in tensor.stride() else tensor.untyped_storage().nbytes() // tensor.element_size()


def operators(step: Callable[[int], Tensor]) -> tuple[Operator, ...]:
    """The operators forward and backward of `step`, which gives the loss of so many images on the meta device."""
    traces = []
    for images in TRACED:
        with _Counter() as counter:
            step(images).backward()  # type: ignore[no-untyped-call]
        traces.append(counter.found)
    return tuple(Operator(*key, count) for key, count in Counter(_per_image(*traces)).items())


def _per_image(few: list[Any], more: list[Any]) -> Iterator[tuple[float, float, float]]:
    low, high = TRACED
    if [name for name, _, _ in few] != [name for name, _, _ in more]:  # another path for other batches
        few = [(name, 0.0, 0.0) for name, _, _ in more]
        low = 0
    for (_, _, b0), (_, f1, b1) in zip(few, more, strict=True):
        each = (b1 - b0) / (high - low)
        yield f1 / high, max(each, 0.0), max(b1 - high * each, 0.0)


FLOAT32, BFLOAT16 = 4, 2
# What is reached of the peak by matrix products and of the memory's rate by what is bound by it: fitted to timm's
# published training rates on an RTX 3090 (tests/train/test_roofline.py).
MATRIX_SHARE, MEMORY_SHARE = 0.7, 0.7
DEVICES_PER_HOST = 8
HOP_SECONDS = 3e-6  # from one host to the next in a ring, assumed
# Llama 3 (arXiv 2407.21783, section 3.3.4): 466 interruptions in 54 days on 16,384 H100s.
FAILURES_PER_DEVICE_SECOND = 466 / (54 * 86_400 * 16_384)
RESTART_SECONDS = 300.0  # to notice a failure, start again and load the checkpoint, assumed
HOST_COPY_RATE = 25e9  # bytes a second from a device to its host, assumed: half of PCIe 5
STORAGE_RATE = 2e9  # bytes a second that a host writes to shared storage, assumed


@dataclass(frozen=True)
class Workload:
    """What is trained, whatever it is trained on. Activations are those of one image, kept for the backward pass."""

    parameters: int
    largest_block: int
    """parameters of the largest part that is gathered at a time"""
    blocks: int
    state_bytes: int
    """of the optimizer"""
    flops_per_image: float
    """of training"""
    activation_bytes: float
    recomputed_flops_per_image: float = 0.0
    """of the forward passes that are done twice to save memory"""
    operators: tuple[Operator, ...] = ()
    """of a forward and a backward pass"""
    passes: int = 1
    """such passes of a step: two with sharpness-aware minimisation"""
    frozen_flops_per_image: float = 0.0
    """of a teacher"""


@dataclass(frozen=True)
class DeviceLayout:
    """How a run is spread: `sharding` as in the configuration; images per device are taken `device_batch` at a time."""

    devices: int
    batch_size: int
    sharding: str = "full"
    device_batch: int | None = None
    precision: str = "bfloat16"

    @property
    def hosts(self) -> int:
        return math.ceil(self.devices / DEVICES_PER_HOST)

    @property
    def images_per_device(self) -> float:
        return self.batch_size / self.devices

    @property
    def at_a_time(self) -> float:
        return min(self.images_per_device, self.device_batch or self.images_per_device)

    @property
    def accumulation(self) -> int:
        """in how many parts a device takes its images"""
        return math.ceil(self.images_per_device / self.at_a_time)

    @property
    def shards(self) -> int:
        """among how many devices weights and optimizer state are divided"""
        if self.sharding == "none":
            return 1
        return min(self.devices, DEVICES_PER_HOST) if self.sharding == "hybrid" else self.devices

    @property
    def compute_bytes(self) -> int:
        return FLOAT32 if self.precision == "float32" else BFLOAT16


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    """copies of weights in the type of the computation"""
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


def memory(work: Workload, layout: DeviceLayout) -> Memory:
    """Float32 master weights, gradients and optimizer state, each divided among the shards; copies and activations.

    Sharded, two blocks at a time are gathered, with the gradient of one; whole weights have a copy in bfloat16.
    """
    kind = layout.compute_bytes
    if layout.sharding == "none":
        gathered = work.parameters * kind if kind != FLOAT32 else 0
    else:
        gathered = work.largest_block * (2 * kind + FLOAT32)
    activations = work.activation_bytes * layout.at_a_time * kind / BFLOAT16
    whole = FLOAT32 * work.parameters
    return Memory(whole / layout.shards, whole / layout.shards, work.state_bytes / layout.shards, gathered, activations)


@dataclass(frozen=True)
class Communication:
    """What one device sends and receives in a step, and how long that takes when nothing hides it."""

    bytes: float
    seconds: float


def communication(work: Workload, layout: DeviceLayout, device: Accelerator) -> Communication:
    """Weights gathered forward and backward and gradients scattered, once a go; or gradients summed, once a step.

    Rings move (n - 1)/n of the data past every device. Within a host at the link's rate; among hosts, where all its
    devices take part and each uses its own network card, at the sum of their rates, at most the link's. Gathering and
    scattering take a hop for each further host, besides; sums, by trees, two for each doubling of the hosts.
    """
    p, w, hosts, kind = work.parameters, layout.devices, layout.hosts, layout.compute_bytes
    if w == 1:
        return Communication(0.0, 0.0)
    local = min(w, DEVICES_PER_HOST)
    rate = min(device.link_rate, local * device.network_rate) if hosts > 1 else device.link_rate
    ring, tree = (hosts - 1) * HOP_SECONDS, 2 * math.log2(hosts) * HOP_SECONDS
    gathered = layout.accumulation * (2 * kind + FLOAT32) * p
    summed = 2 * FLOAT32 * p  # each number out and back
    units = (work.blocks + 1) * layout.accumulation
    if layout.sharding == "none":
        sent = summed * (w - 1) / w
        return Communication(sent, sent / rate + math.ceil(p / BUCKET) * tree)
    if layout.sharding == "full":
        sent = gathered * (w - 1) / w
        return Communication(sent, sent / rate + 3 * units * ring)
    inside = gathered * (local - 1) / local
    outside = summed / local * (hosts - 1) / hosts * layout.accumulation
    seconds = inside / device.link_rate + outside / device.network_rate + units * tree
    return Communication(inside + outside, seconds)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: of the arithmetic and of communication.

    FSDP2 gathers and scatters a block while it computes another, so that one hides the other as far as it can; whole
    gradients are summed when they are all there.
    """

    compute: float
    communication: float
    overlaps: bool

    @property
    def total(self) -> float:
        return max(self.compute, self.communication) if self.overlaps else self.compute + self.communication


def step_time(work: Workload, layout: DeviceLayout, device: Accelerator, utilisation: float) -> StepTime:
    """Each operator takes the longer of its arithmetic and of what it moves (`train/scaling.py`).

    Arithmetic at `utilisation` of the peak of bfloat16 products (half of it in float32, by TF32), bytes at
    `MEMORY_SHARE` of the memory's rate (twice as many in float32). What is computed twice takes its share of the FLOPs
    again; the optimizer reads weights, gradients and state, and writes all but the gradients.
    """
    whole = layout.precision == "float32"
    rate = device.matrix_flops * utilisation * (0.5 if whole else 1.0)
    moved = device.memory_rate * MEMORY_SHARE
    images = math.ceil(layout.images_per_device)
    accumulation, at_a_time = layout.accumulation, images / layout.accumulation
    passed = sum(op.seconds(at_a_time, rate, moved * (0.5 if whole else 1.0)) for op in work.operators)
    again = work.recomputed_flops_per_image / max(work.flops_per_image - work.frozen_flops_per_image, 1.0)
    update = (5 * FLOAT32 * work.parameters + 2 * work.state_bytes) / layout.shards / moved
    compute = accumulation * passed * work.passes * (1.0 + again) + images * work.frozen_flops_per_image / rate + update
    return StepTime(compute, communication(work, layout, device).seconds, layout.sharding != "none")


@dataclass(frozen=True)
class Reliability:
    """How often a run is interrupted, how often it had better save, and what share of the time is left for training."""

    seconds_between_failures: float
    pause: float
    """seconds that a checkpoint holds training up: the copy to the hosts' memory"""
    write: float
    """seconds until it is in storage, beside training"""
    interval: float
    """seconds between checkpoints"""
    goodput: float


def checkpoint_bytes(work: Workload) -> int:
    """Weights and optimizer state."""
    return FLOAT32 * work.parameters + work.state_bytes


def reliability(work: Workload, layout: DeviceLayout, interval: float | None = None) -> Reliability:
    """At the failure rate published for Llama 3; the best interval is √(2 · pause · time between failures).

    (Young 1974; Daly 2006 corrects it where saving is not short.) It is not shorter than a checkpoint takes to write,
    since one is written at a time. A failure costs half an interval, the time to write, and a restart. `interval`
    replaces the best one.
    """
    between = 1 / (FAILURES_PER_DEVICE_SECOND * layout.devices)
    size = checkpoint_bytes(work)
    savers = layout.shards if layout.sharding != "none" else 1
    pause = size / savers / HOST_COPY_RATE
    write = size / (math.ceil(savers / DEVICES_PER_HOST) * STORAGE_RATE)
    best = max(math.sqrt(2 * pause * between), write) if interval is None else interval
    lost = pause / best + (best / 2 + write + RESTART_SECONDS) / between
    return Reliability(between, pause, write, best, max(0.0, 1 - lost))
