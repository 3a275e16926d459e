"""Operators that are faster than PyTorch's on some devices: linear maps, attention, GroupNorm, pooling.

Linear maps on the last axis use oneDNN's matrix product if it is faster on a CPU. PyTorch uses MKL for float32
products. For tall, narrow ones (a map of many cells and few channels) it reaches half of oneDNN's speed, and for others
5 to 10 % less. The gradient of the weights uses MKL, which is faster there.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isoflop.models.parameters import Kinds

# Below this many multiply-adds the detour through Python costs more than it saves.
WORTHWHILE = 1 << 24


class _Linear(torch.autograd.Function):
    """x·wᵀ + b for a matrix x (rows, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _product(grad, weight.t(), None) if for_x else None,
            grad.t() @ x if for_weight else None,
            grad.sum(dim=0) if ctx.biased and for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·wᵀ + b over the last axis of x, as `torch.nn.functional.linear`."""
    if not _detour(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def _detour(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: an exported graph must not depend on the size of its example
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= WORTHWHILE
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


# Attention, by whichever form is the faster one (benchmarks/operators.py).
#
# On CPUs with bfloat16 in hardware PyTorch's kernel, which works on small tiles, took 122 ms forward and backward at
# (128, 6, 64, 32) where the form written out, whose products go to oneDNN, took 22 ms (one core of an EPYC with
# AVX512-BF16). In float32, and in bfloat16 without the hardware (AVX2: 2.3 times), PyTorch's kernel is the faster one.


KEPT = 4  # times the channels of a head: the most tokens whose weights are kept for the backward pass
CHUNK_BYTES = 1 << 26  # of attention weights that are computed at a time where they are not kept


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v for (batch, heads, tokens, d); `mask` is True where a key may be seen."""
    if writes_attention_out(q):
        return written_out_attention(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def writes_attention_out(q: Tensor) -> bool:
    """Whether attention of `q` is faster written out than by PyTorch's kernel: in bfloat16 on a CPU that has it."""
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return kind == torch.bfloat16 and bool(cpu_has_bfloat16())


@functools.lru_cache(maxsize=1)
def cpu_has_bfloat16() -> bool | None:
    """Whether this processor has instructions for bfloat16 products, and oneDNN may use them (`ONEDNN_MAX_CPU_ISA`);
    without them the products work, but slowly. None where the system does not tell."""
    if re.fullmatch(r"SSE41|AVX|AVX2|AVX2_VNNI|AVX512_CORE|AVX512_CORE_VNNI", os.environ.get("ONEDNN_MAX_CPU_ISA", "")):
        return False
    if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return True
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)", told, re.MULTILINE)
    return bool(flags and {"avx512_bf16", "amx_bf16", "bf16"} & set(flags[1].split()))


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as two products. Weights are kept for the backward pass while they are at most `KEPT` times as many as
    numbers in q; of longer sequences, they are computed again, some images at a time."""
    batch, heads, queries, width = q.shape
    tokens = k.shape[2]
    if tokens <= KEPT * width:
        return _weighted(q, k, v, mask)
    images = max(1, CHUNK_BYTES // (heads * queries * tokens * q.element_size()))
    masks = [None] * batch if mask is None else torch.split(mask.expand(batch, -1, -1, -1), images)
    parts = zip(*(torch.split(x, images) for x in (q, k, v)), masks, strict=False)
    return torch.cat([checkpoint(_weighted, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _weighted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)


# GroupNorm for maps whose channels come last, and the pooling block that shares its statistics.


class GroupNorm(nn.Module):
    """GroupNorm of maps (batch, rows, columns, width) or tokens (batch, tokens, width)."""

    parameter_kinds: ClassVar[Kinds] = {"weight": "gain", "bias": "bias"}

    def __init__(self, width: int, groups: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's kernel for channels-last maps is several times as fast as a composition of means and products.
        grid = x if x.ndim == 4 else x[:, :, None]
        out = F.group_norm(grid.movedim(-1, 1), self.groups, self.weight, self.bias, self.eps)
        return out.movedim(1, -1).view(x.shape)


class _PoolResidual(torch.autograd.Function):
    """x + keep·gain·σ⁻¹·(mean of the neighbours − x) with the σ of each image; see `pool_residual`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, keep: Tensor, size: int, eps: float) -> Tensor:
        batch, rows, columns, width = x.shape
        x = x.contiguous()
        # Of the norm only its statistics are wanted, but its kernel is still the fastest way to them.
        _, mean, rstd = torch.native_group_norm(x.movedim(-1, 1), None, None, batch, width, rows * columns, 1, eps)
        mean, rstd = mean.view(-1, 1, 1, 1), rstd.view(-1, 1, 1, 1)
        mixed = _averaged(x, size).sub_(x)
        ctx.save_for_backward(x, mixed, gain, keep, mean, rstd)
        ctx.size = size
        return torch.addcmul(x, mixed, gain * (rstd * keep))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, mixed, gain, keep, mean, rstd = ctx.saved_tensors
        along = (grad * mixed).sum(dim=(1, 2))[:, None, None] * keep  # (batch, 1, 1, width)
        scaled = grad * (gain * (rstd * keep))
        # The mean divides by the number of neighbours, so its transpose divides first and sums then.
        dx = _summed_back(scaled, ctx.size).sub_(scaled).add_(grad)
        a = -(along * gain).sum(dim=-1, keepdim=True) * rstd.pow(3) / x[0].numel()
        dx.addcmul_(x, a).sub_(a * mean)
        # The norm's bias cancels. Its gradient is zero and not None, for those who wait for every parameter's.
        return dx, (along * rstd).sum(dim=(0, 1, 2)), torch.zeros_like(gain), None, None, None


def pool_residual(x: Tensor, gain: Tensor, bias: Tensor, keep: Tensor, size: int, eps: float) -> Tensor:
    """x + keep·gain·pooling(GroupNorm₁(x)) for a map (batch, rows, columns, width).

    `gain` and the norm's `bias` (width) are learned, `keep` (batch, 1, 1, 1) is the stochastic depth of each image.
    The mean of a neighbourhood minus the token itself does not see what all tokens share, so the norm's mean and bias
    cancel, and its division by σ commutes with the pooling: the normalised map is never made.
    """
    out: Tensor = _PoolResidual.apply(x, gain, bias, keep, size, eps)  # type: ignore[no-untyped-call]
    return out


def _averaged(x: Tensor, size: int) -> Tensor:
    mean = F.avg_pool2d(x.movedim(-1, 1), size, stride=1, padding=size // 2, count_include_pad=False)
    return mean.movedim(1, -1)


def _summed_back(grad: Tensor, size: int) -> Tensor:
    """The transpose of `_averaged`: PyTorch's own, on a gradient whose input is never looked at."""
    channels_first = grad.movedim(-1, 1)
    pad = [size // 2, size // 2]
    out: Tensor = torch.ops.aten.avg_pool2d_backward(
        channels_first, channels_first, [size, size], [1, 1], pad, False, False, None
    )
    return out.movedim(1, -1)


# GroupNorm with ReLU behind it, as one step: what stands before every convolution of BiT.
#
# Two detours around PyTorch's kernel for maps whose channels come last: in training, groups of a few channels take it
# up
# to fourteen times as long as plain sums over the map; in inference, its running sums are too coarse for fifty layers.


# Groups of fewer channels than this are slower in PyTorch's kernel than in `_Narrow`.
NARROW = 8
WIDE_RANGE = (torch.float32, torch.bfloat16)  # squares of float16 overflow


def group_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """relu(GroupNorm(x)) of a map (batch, rows, columns, width), with the fast gradient where autograd is on."""
    if not torch.is_grad_enabled():
        return _exactly(x, weight, bias, groups, eps)
    eager = x.device.type == "cpu" and x.dtype in WIDE_RANGE and not torch.compiler.is_compiling()
    if eager and x.shape[-1] // groups < NARROW:
        out: Tensor = _Narrow.apply(x, weight, bias, groups, eps)  # type: ignore[no-untyped-call]
        return out
    # In place before the axes are moved: in place on a view, autograd copies the gradient three times.
    return F.group_norm(x.movedim(-1, 1), groups, weight, bias, eps).relu_().movedim(1, -1)


def _exactly(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """With a variance from centred values, which keeps fifty layers within 1e-5 of another implementation."""
    cells = x.view(x.shape[0], -1, groups, x.shape[-1] // groups)
    centred = cells - cells.mean(dim=(1, 3), keepdim=True)
    scale = (centred.square().mean(dim=(1, 3), keepdim=True) + eps).rsqrt() * weight.view(groups, -1)
    return torch.addcmul(bias.view(groups, -1), centred, scale).relu_().view(x.shape)


class _Narrow(torch.autograd.Function):
    """relu(GroupNorm(x)) by sums over the cells of each channel, which are then added up by group.

    As PyTorch's kernel, it needs no copy of x: x̂ = (x − μ)/σ is linear in x, and so is the gradient in x and dy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        cells = x.reshape(len(x), -1, x.shape[-1])
        count = cells.shape[1] * (cells.shape[2] // groups)
        mean = _by_group(_total(cells), groups) / count  # (batch, groups, 1)
        variance = _by_group(_total(cells * cells), groups) / count - mean.square()
        rstd = variance.clamp_(min=0).add_(eps).rsqrt_()
        scale = weight.view(groups, -1) * rstd  # (batch, groups, channels of a group)
        shift = bias.view(groups, -1) - mean * scale
        out = torch.addcmul(_on_cells(shift, x), cells, _on_cells(scale, x)).relu_()
        ctx.save_for_backward(cells, out, weight, mean, rstd)
        ctx.groups, ctx.count = groups, count
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        cells, out, weight, mean, rstd = ctx.saved_tensors
        dy = torch.ops.aten.threshold_backward(grad.reshape(cells.shape), out, 0)
        product = dy * cells
        sums = _total(dy).view(len(dy), ctx.groups, -1)
        products = _total(product).view(len(dy), ctx.groups, -1)
        gain = weight.view(ctx.groups, -1)
        # dx = gain·rstd·dy + a·x + b, with a and b such that dx is free of μ and of x̂ in every group.
        total, along = (sums * gain).sum(dim=-1, keepdim=True), (products * gain).sum(dim=-1, keepdim=True)
        a = (total * mean - along) * rstd.pow(3) / ctx.count
        b = -a * mean - total * rstd / ctx.count
        a, b = _on_cells(a.expand_as(sums), cells), _on_cells(b.expand_as(sums), cells)
        dx = torch.addcmul(b, cells, a, out=product).addcmul_(dy, _on_cells(gain * rstd, cells))
        d_weight = ((products - sums * mean) * rstd).sum(dim=0).view_as(weight)
        return dx.view(grad.shape), d_weight, sums.sum(dim=0).view_as(weight), None, None


def _by_group(channels: Tensor, groups: int) -> Tensor:
    """Sums (batch, groups, 1) of (batch, width)."""
    return channels.view(len(channels), groups, -1).sum(dim=-1, keepdim=True)


def _total(cells: Tensor) -> Tensor:
    """Sums (batch, width) over the cells, of bfloat16 in float32."""
    return cells.sum(dim=1, dtype=torch.promote_types(cells.dtype, torch.float32))


def _on_cells(by_group: Tensor, cells: Tensor) -> Tensor:
    """(batch, groups, channels of a group) as (batch, 1, width), to stand beside (batch, cells, width)."""
    return by_group.reshape(len(by_group), 1, -1).to(cells.dtype)
