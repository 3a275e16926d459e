"""Few-shot classifiers on frozen features, in closed form: ridge regression (arXiv 2106.04560) and nearest neighbours.

Both return scores (m, classes) of test features; the largest score of a row is the answer.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import blas, cho_factor, cho_solve
from torch import Tensor

BIAS = 100.0  # of the constant feature: so large that its weight is hardly penalised
L2 = 2.0**10
EPS = 1e-5  # added to the standard deviation of a feature
NEIGHBOURS = 20
TEMPERATURE = 0.07
_ROWS = 1024  # of similarities at a time


def ridge(features: Tensor, labels: Tensor, num_classes: int, *, l2: float = L2, bias: float = BIAS) -> Tensor:
    """Weights float64 (D + 1, num_classes) of the ridge regression from `features` (n, D) to ±1 targets of `labels`.

    The last row belongs to a constant feature `bias`, which is penalised like the others, as in the paper. Solved in
    float64, in the smaller of the primal (D + 1) and the dual (n) form.
    """
    x = _with_bias(features, bias)
    n, width = x.shape
    if width > n:
        targets = 2.0 * F.one_hot(labels, num_classes).double() - 1.0
        return x.T @ _solve(x.T.numpy(), l2, targets.numpy(), dual=True)
    # xᵀ·targets without targets: twice the sum of a class's rows, less the sum of all rows.
    sums = torch.zeros(num_classes, width, dtype=x.dtype).index_add_(0, labels, x)
    return _solve(x.T.numpy(), l2, (2.0 * sums.T - sums.sum(dim=0)[:, None]).numpy(), dual=False)


def ridge_scores(
    train: Tensor, train_labels: Tensor, test: Tensor, num_classes: int, *, l2: float = L2, bias: float = BIAS
) -> Tensor:
    """Scores float64 (m, num_classes) of `test` (m, D) by ridge regression on the few `train` (n, D).

    Both are whitened per feature with the mean and standard deviation of the few, as in the authors' code.
    """
    std, mean = torch.std_mean(train.double(), dim=0, correction=0)
    std += EPS
    weights = ridge((train - mean) / std, train_labels, num_classes, l2=l2, bias=bias)
    scores: Tensor = _with_bias((test - mean) / std, bias) @ weights
    return scores


def neighbour_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    num_classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes float32 (m, num_classes) of the `neighbours` training features most alike by cosine (arXiv 1805.01978).

    A neighbour's vote weighs exp(cosine / temperature); fewer training features than `neighbours` all vote.
    """
    known, k = F.normalize(train.float()), min(neighbours, len(train))
    votes = torch.zeros(len(test), num_classes)
    for start in range(0, len(test), _ROWS):
        alike, who = (F.normalize(test[start : start + _ROWS].float()) @ known.T).topk(k)
        votes[start : start + _ROWS].scatter_add_(1, train_labels[who], ((alike - 1.0) / temperature).exp())
    return votes


def _solve(columns: NDArray[np.float64], l2: float, right: NDArray[np.float64], *, dual: bool) -> Tensor:
    """(C·Cᵀ + l2·1)⁻¹·right for `columns` C, or with Cᵀ·C if `dual`; half of the symmetric product is computed."""
    gram = blas.dsyrk(1.0, columns, trans=int(dual))
    gram[np.diag_indices_from(gram)] += l2
    factor = cho_factor(gram, overwrite_a=True, check_finite=False)
    return torch.from_numpy(cho_solve(factor, right, overwrite_b=True, check_finite=False))


def _with_bias(features: Tensor, bias: float) -> Tensor:
    return F.pad(features.double(), (0, 1), value=bias)
