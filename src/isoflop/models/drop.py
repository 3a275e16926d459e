"""Stochastic depth and dropout: what is random in a backbone's training.

The numbers come from PyTorch's global generator, which a step seeds. A process that has only some rows of a batch (one
of several ranks, or a part of a batch that does not fit at once) draws for the whole batch and takes its rows, so that
the numbers of a sample do not depend on how the batch was divided.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

# Not a context variable: recomputed activations are drawn again by threads of the backward pass.
_rows: tuple[int, int] | None = None


@contextmanager
def rows_of_batch(first: int, total: int) -> Iterator[None]:
    """Within, batches are rows `first`, `first` + 1, … of a batch of `total` images."""
    global _rows
    before, _rows = _rows, (first, total)
    try:
        yield
    finally:
        _rows = before


def drop_path(branch: Tensor, rate: float, training: bool, scale_by_keep: bool = True) -> Tensor:
    """`branch` with whole samples zeroed at `rate` (stochastic depth, arXiv 1603.09382).

    The others are divided by the probability of being kept, unless not `scale_by_keep`.
    """
    if rate == 0.0 or not training:
        return branch
    count = len(branch)
    first, total = _rows or (0, count)
    keep = branch.new_empty((total,) + (1,) * (branch.ndim - 1)).bernoulli_(1 - rate)
    if scale_by_keep:
        keep.div_(1 - rate)
    return branch * keep[first : first + count]


class Dropout(nn.Dropout):
    """PyTorch's dropout, the same for each sample however the batch is divided."""

    def forward(self, x: Tensor) -> Tensor:
        if _rows is None or not self.training or self.p == 0.0:
            return super().forward(x)
        first, total = _rows
        keep = F.dropout(x.new_ones((total, *x.shape[1:])), self.p, training=True)
        return x * keep[first : first + len(x)]


class DropPath(nn.Module):
    """`drop_path` as a module."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate, self.training)
