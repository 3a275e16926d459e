"""Position embeddings: fixed sines and cosines, and the resizing of learned ones to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed position embedding (height·width, width): sin and cos of x, then of y, as in MAE (arXiv 2111.06377, code).

    The width must be a multiple of 4.
    """
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
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
