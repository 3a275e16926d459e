"""The operators of a training step and what each moves, and how long they take at the rates of a device.

An operator takes the longer of its arithmetic at the peak and its bytes at the rate of the memory: matrix products of
large matrices are bound by the first, normalisation, pooling and pointwise operators by the second (Williams et al.,
2009). Operators are those that run one by one, without a compiler that joins them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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
