"""Cost of a backbone: parameters and multiply-adds, counted on the meta device without memory."""

from __future__ import annotations

import fnmatch
import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.errors import ModelError, did_you_mean
from isoflop.models.bit import BiT
from isoflop.models.create import OTHERS, create_model
from isoflop.models.metaformer import MetaFormer
from isoflop.models.nfnet import NFNet
from isoflop.models.presets import FAMILIES, PRESETS


@dataclass(frozen=True)
class Cost:
    """Cost of one image. `macs` are multiply-adds of a forward pass; a FLOP is half of one everywhere in isoflop.

    `frozen_macs` are those of what runs forward only, in training alone: a teacher.
    """

    parameters: int
    macs: int
    frozen_macs: int = 0

    @property
    def flops(self) -> int:
        """FLOPs of one forward pass: 2 · macs."""
        return 2 * self.macs

    @property
    def train_flops_per_image(self) -> int:
        """FLOPs of one training step per image: forward, and twice that for the gradients of what is trained."""
        return 3 * self.flops + 2 * self.frozen_macs


def cost(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    **overrides: Any,
) -> Cost:
    """Parameters and MACs per image of `create_model` with the same arguments; ModelError as there."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    size = image_size if isinstance(image_size, int) else (image_size[0], image_size[1])
    return _counted(name, num_classes, size, in_channels, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=1024)
def _counted(
    name: str,
    num_classes: int,
    image_size: int | tuple[int, int],
    in_channels: int,
    overrides: tuple[tuple[str, Any], ...],
) -> Cost:
    with torch.device("meta"):
        model = create_model(
            name, num_classes=num_classes, image_size=image_size, in_channels=in_channels, **dict(overrides)
        ).eval()
        images = torch.empty(1, in_channels, *model.image_size)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    omitted = _omit_repeated_blocks(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(images)
    flops = counter.get_total_flops()
    for block, count in omitted.items():
        flops += count * sum(counter.get_flop_counts().get(block, {}).values())  # none in a pooling without an MLP
    return Cost(parameters, flops // 2)


def _omit_repeated_blocks(model: nn.Module) -> dict[str, int]:
    """Removes the blocks that repeat the one before them from a model of ours, which is then counted several times as
    fast; how many were removed, by the name of the block that is left."""
    omitted: dict[str, int] = {}
    if not isinstance(model, MetaFormer | NFNet | BiT):
        return omitted
    for index, stage in enumerate(model.stages):
        left: list[nn.Module] = []
        last = None
        for block in stage.children():
            # Windows, strides and the like; what is no whole number (rates of drop path, gains) costs nothing.
            settings = [
                (type(module), {k: v for k, v in vars(module).items() if isinstance(v, int | str | tuple)})
                for module in block.modules()
            ]
            kind = ([p.shape for p in block.parameters()], settings)
            ours = all(cls.__module__.startswith(("isoflop.", "torch.")) for cls, _ in settings)  # no mixer from a file
            if ours and kind == last:
                name = f"{type(model).__name__}.stages.{index}.{len(left) - 1}"
                omitted[name] = omitted.get(name, 0) + 1
            else:
                left.append(block)
            last = kind
        model.stages[index] = nn.Sequential(*left)
    return omitted


# What can be trained, and what it takes: the rows that `isoflop models` prints.


# Bytes of state per parameter in float32 (Adafactor: first moment in bf16, second factored to next to nothing).
OPTIMIZER_BYTES = {"adamw": 8, "sgd": 4, "adafactor": 2}


@dataclass(frozen=True)
class ModelRow:
    """One model at one image size. Memory is in bytes, float32; `images_per_second` is None where not measured."""

    name: str
    family: str
    image_size: tuple[int, int]
    parameters: int
    macs: int
    activation_bytes: int
    optimizer_bytes: dict[str, int]
    images_per_second: float | None = None


def find_models(search: str = "", family: str = "") -> list[str]:
    """Names of presets that contain every word of `search`, of one family or of all; a word with * or ? is a pattern.

    Raises ModelError for an unknown family, and when nothing is found, with a suggestion.
    """
    if family and family not in FAMILIES:
        raise ModelError(f"there is no family {family!r}{did_you_mean(family, FAMILIES)}")
    names = list(FAMILIES[family]) if family else list(PRESETS)
    patterns = [word if set("*?") & set(word) else f"*{word}*" for word in search.lower().split()]
    found = [name for name in names if all(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        raise ModelError(f"no model matches {search!r}{did_you_mean(search, names, cutoff=0.6) or OTHERS}")
    return found


def describe(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    measure: bool = False,
    batch_size: int = 32,
    **overrides: object,
) -> ModelRow:
    """Sizes and costs of one model; with `measure`, training speed on this machine as well (a few seconds).

    `activation_bytes` is what one image of a training batch keeps for the backward pass in float32 without
    checkpointing, counted from the tensors that autograd saves.
    """
    shape = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
    counted = cost(name, **shape, **overrides)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = create_model(name, **shape, **overrides)  # type: ignore[arg-type]
    speed = None
    if measure:
        speed = images_per_second(name, batch_size=batch_size, **shape, **overrides)  # type: ignore[arg-type]
    return ModelRow(
        name=name,
        family=model.family,
        image_size=model.image_size,
        parameters=counted.parameters,
        macs=counted.macs,
        activation_bytes=_activation_bytes(model, in_channels, model.image_size),
        optimizer_bytes={kind: size * counted.parameters for kind, size in OPTIMIZER_BYTES.items()},
        images_per_second=speed,
    )


def images_per_second(name: str, *, batch_size: int = 32, seconds: float = 2.0, **options: object) -> float:
    """Images a second through forward and backward passes on the default device: the median batch of `seconds`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(name, seed=0, **options).to(device).train()  # type: ignore[arg-type]
    images = torch.randn(batch_size, model.in_channels, *model.image_size, device=device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    # The first batch also pays for buffers and kernels.
    return batch_size / sorted(times[1:])[len(times[1:]) // 2]


def _activation_bytes(model: torch.nn.Module, in_channels: int, image_size: tuple[int, int]) -> int:
    """What one more image adds: functions of the weights alone (standardised ones, say) are saved once a batch.

    To two images, since BatchNorm takes no batch of one.
    """
    two, three = (_saved_bytes(model, torch.empty(count, in_channels, *image_size, device="meta")) for count in (2, 3))
    return three - two


def _saved_bytes(model: torch.nn.Module, images: Tensor) -> int:
    saved: dict[int, Tensor] = {}

    def remember(tensor: Tensor) -> Tensor:
        # Views of one tensor are kept once; holding it here keeps its key unique.
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        output = model(images)  # noqa: F841 - its graph holds what was saved
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
