"""What features are worth while a run without labels trains: ridge regression on them, and their effective rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import blas, cho_factor, cho_solve
from torch import Tensor

from isoflop.data import Source, batches
from isoflop.objectives import Objective
from isoflop.train.device import Precision, normalize
from isoflop.train.ranks import Ranks

# Ridge regression as a classifier (arXiv 2106.04560).


BIAS = 100.0  # of the constant feature: so large that its weight is hardly penalised
L2 = 2.0**10
EPS = 1e-5  # added to the standard deviation of a feature


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


def _solve(columns: NDArray[np.float64], l2: float, right: NDArray[np.float64], *, dual: bool) -> Tensor:
    """(C·Cᵀ + l2·1)⁻¹·right for `columns` C, or with Cᵀ·C if `dual`; half of the symmetric product is computed."""
    gram = blas.dsyrk(1.0, columns, trans=int(dual))
    gram[np.diag_indices_from(gram)] += l2
    factor = cho_factor(gram, overwrite_a=True, check_finite=False)
    return torch.from_numpy(cho_solve(factor, right, overwrite_b=True, check_finite=False))


def _with_bias(features: Tensor, bias: float) -> Tensor:
    return F.pad(features.double(), (0, 1), value=bias)


# Of a run: features of the same few images at every evaluation.


IMAGES = 2000


@torch.no_grad()
def probe(
    objective: Objective,
    source: Source,
    heldout: Source,
    *,
    seed: int,
    batch_size: int,
    ranks: Ranks,
    precision: Precision,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`probe_accuracy` on `heldout` of ridge regression on the backbone's features of images of `source`, and the
    `rankme` of these; nothing where features are not finite, no accuracy where an image has not one class.

    The images are the first `IMAGES` in the order of this `seed`, not augmented: always the same, those that a run sees
    first. All ranks must ask, and each looks at all of them.
    """
    size = min(batch_size, IMAGES)

    def features(of: Source) -> tuple[Tensor, Tensor]:
        count = min(IMAGES, len(of))
        found, labels = [], []
        steps = -(-count // size)
        for batch in batches(
            of, seed=seed, batch_size=size, start_step=0, stop_step=steps, interpolation=of.interpolation
        ):
            with precision.autocast(ranks.device):
                found.append(objective.features(normalize(batch.images, of, ranks.device)).float().cpu())
            labels.append(batch.labels)
            beat()
        return torch.cat(found)[:count], torch.cat(labels)[:count]

    was_training = objective.training
    objective.eval()
    try:
        train, labels = features(source)
        if not bool(train.isfinite().all()):
            return {}
        found = {"rankme": rankme(train)}
        if source.task or source.has_several_labels or source.num_classes < 2:
            return found
        test, truth = features(heldout)
    finally:
        objective.train(was_training)
    guessed = ridge_scores(train, labels, test, source.num_classes).argmax(dim=1)
    return {"probe_accuracy": (guessed == truth).double().mean().item()} | found


def rankme(features: Tensor) -> float:
    """The effective rank of `features` (n, D), between 1 and min(n, D): exp of the entropy of their singular values
    (arXiv 2210.02885, eq. 2)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-30) + 1e-7  # features that have collapsed may all be zero
    return float(torch.exp(-(shares * shares.log()).sum()))
