"""Position embeddings: fixed sines and cosines, and the resizing of learned ones to another grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# What the exponent k of the n frequencies 10000^-(k/…) is divided by: n - 1 in big_vision's ViTs (arXiv 2205.01580,
# authors' code), whose last frequency is 1/10000; n in MAE (arXiv 2111.06377, authors' code).
SINCOS: dict[str, Callable[[int], int]] = {"sincos": lambda n: max(n - 1, 1), "sincos_mae": lambda n: n}


def sincos_2d(grid: tuple[int, int], width: int, kind: str = "sincos") -> Tensor:
    """Fixed position embedding (height·width, width): sin and cos of x, then of y. `kind` is a key of `SINCOS`.

    The width must be a multiple of 4.
    """
    count = width // 4
    omega = 10_000.0 ** -(torch.arange(count, dtype=torch.float64) / SINCOS[kind](count))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    y, x = rows.reshape(-1, 1) * omega, columns.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def resize(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """A position table (1, old height·width, channels) interpolated to (1, new height·width, channels)."""
    if old == new:
        return table
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=new, mode=mode, antialias=True, align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(table.dtype)
