"""Few-shot accuracy by closed-form ridge regression on frozen features (arXiv 2106.04560, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

BIAS = 100.0  # of the constant feature
L2 = 2.0**10


def ridge(features: Tensor, labels: Tensor, num_classes: int, *, l2: float = L2, bias: float = BIAS) -> Tensor:
    """Weights (D + 1, num_classes) of the ridge regression from `features` (n, D) to ±1 targets of `labels` (n,).

    The last row belongs to a constant feature `bias`, which is penalised like the others, as in the paper. Solved in
    float64 in the smaller of the primal (D + 1) and the dual (n) form.
    """
    x = _with_bias(features, bias)
    targets = 2.0 * torch.nn.functional.one_hot(labels, num_classes).double() - 1.0
    n, width = x.shape
    weights: Tensor
    if width <= n:
        weights = torch.linalg.solve(x.T @ x + l2 * torch.eye(width, dtype=x.dtype), x.T @ targets)
    else:
        weights = x.T @ torch.linalg.solve(x @ x.T + l2 * torch.eye(n, dtype=x.dtype), targets)
    return weights


def few_shot_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int, *, l2: float = L2
) -> float:
    """Top-1 accuracy on `test` features (m, D) of ridge regression on the few `train` features (n, D).

    Both are whitened per feature with the mean and standard deviation of the few.
    """
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0) + 1e-5
    weights = ridge((train - mean) / std, train_labels, num_classes, l2=l2)
    answers = (_with_bias((test - mean) / std, BIAS) @ weights).argmax(dim=1)
    return float((answers == test_labels).double().mean())


def _with_bias(features: Tensor, bias: float) -> Tensor:
    return torch.nn.functional.pad(features.double(), (0, 1), value=bias)
