"""Few-shot classifiers on frozen features: nearest neighbours, linear probe, logistic regression.

Ridge regression is in `train/probe.py`.

All return scores (m, classes) of test features; the largest score of a row is the prediction.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.config import OptimConfig, ScheduleConfig
from isoflop.errors import DataError
from isoflop.train.optim import build_optimizer, set_rate
from isoflop.train.optim.build import rate_factor

NEIGHBOURS = 20
TEMPERATURE = 0.07
_ROWS = 1024  # of similarities at a time


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


# Linear classifiers that are trained on frozen features: the masked autoencoders' probe, and logistic regression.


EPOCHS = 90
STEPS_PER_EPOCH = 78  # ImageNet's 1,281,167 images in batches of 16,384
WARMUP_EPOCHS = 10
RATE = 0.1 * 16384 / 256
LARGEST_BATCH, SMALLEST_BATCH = 16384, 32
INVERSE_L2 = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT_SHARE = 0.2


def probe_scores(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, *, seed: int = 0, epochs: int = EPOCHS
) -> Tensor:
    """Logits (m, num_classes) of `test` (m, D) by the linear probe of arXiv 2111.06377, appendix A.1.

    BatchNorm without affine, then a linear map; LARS, momentum 0.9, no weight decay, a half cosine after ten epochs of
    warm-up. The features are those of centre crops, computed once (the paper augments). LARS's steps are as long as the
    weights allow, so what matters is their number and rate: both are ImageNet's whatever the data, and batches are a
    78th of the images (32 to 16,384).
    """
    batch = min(max(len(train) // STEPS_PER_EPOCH, SMALLEST_BATCH), LARGEST_BATCH)
    steps, generator = epochs * STEPS_PER_EPOCH, torch.Generator().manual_seed(seed)
    linear = nn.Linear(train.shape[1], num_classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(nn.BatchNorm1d(train.shape[1], eps=1e-6, affine=False), linear)
    optimizer = build_optimizer(model, OptimConfig(name="lars", learning_rate=RATE, momentum=0.9, weight_decay=0.0))
    schedule = ScheduleConfig(name="cosine", warmup=min(WARMUP_EPOCHS, epochs // 2) * STEPS_PER_EPOCH)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(train), generator=generator)])
        rows, order = order[:batch].sort().values, order[batch:]  # sorted: features may lie on a disk
        set_rate(optimizer, RATE * rate_factor(schedule, step, steps))
        F.cross_entropy(model(train[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return _scores(model.eval(), test)


def logistic_scores(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, *, seed: int = 0, inverse_l2: float | None = None
) -> Tensor:
    """Logits (m, num_classes) of `test` (m, D) by `logistic` on `train`."""
    weight, bias = logistic(train, labels, num_classes, seed=seed, inverse_l2=inverse_l2)
    return torch.cat([part.double() @ weight.T + bias for part in torch.split(test, 1 << 14)]).float()


def logistic(
    train: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int = 0,
    inverse_l2: float | None = None,
    intercept: bool = True,
    iterations: int = 500,
) -> tuple[Tensor, Tensor]:
    """Weight (num_classes, D) and bias (num_classes,), float64, of multinomial logistic regression on features (n, D).

    Minimises mean cross-entropy + ‖W‖²/(2·n·C) on standardised features by L-BFGS, the bias unpenalised, as
    scikit-learn does. C is `inverse_l2`, or chosen on a fifth of the images of each class and then used on all. Without
    an `intercept`, features are not centred and the bias is 0. The search ends after `iterations` at the latest.
    """
    std, mean = torch.std_mean(train.double(), dim=0, correction=0)
    std, mean = std.clamp_min(1e-6), mean if intercept else torch.zeros_like(mean)
    x, y = F.pad((train.double() - mean) / std, (0, 1), value=float(intercept)), F.one_hot(labels, num_classes).double()
    if inverse_l2 is None:
        inverse_l2 = _chosen_inverse_l2(x, labels, y, seed, iterations)
    found = _logistic(x, y, inverse_l2, iterations)
    weight = found[:-1].T / std
    return weight, found[-1] - weight @ mean


def _chosen_inverse_l2(x: Tensor, labels: Tensor, y: Tensor, seed: int, iterations: int) -> float:
    generator, held = np.random.default_rng(seed), torch.zeros(len(x), dtype=torch.bool)
    for label in torch.unique(labels):
        members = torch.from_numpy(generator.permutation(torch.nonzero(labels == label)[:, 0].numpy()))
        held[members[: max(1, int(HELD_OUT_SHARE * len(members)))] if len(members) > 1 else members[:0]] = True
    if not held.any():
        return 1.0  # one image a class: nothing to choose on
    losses, start = {}, None
    for c in INVERSE_L2:  # from the strongest penalty on, each from where the last one ended
        start = _logistic(x[~held], y[~held], c, iterations, start)
        losses[c] = float(F.cross_entropy(x[held] @ start, labels[held]))
        if losses[c] > 1.05 * min(losses.values()):  # weaker penalties are worse still, and take longest
            break
    return min(losses, key=losses.__getitem__)


def _logistic(x: Tensor, y: Tensor, inverse_l2: float, iterations: int, start: Tensor | None = None) -> Tensor:
    """Weights float64 (D + 1, classes) for `x` (n, D + 1), whose last column is constant: the last row is the bias.
    The search begins at `start`."""
    n, width = x.shape
    weights = torch.zeros(width, y.shape[1], dtype=torch.float64) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights, y) + weights[:-1].square().sum() / (2 * n * inverse_l2)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    if not bool(weights.isfinite().all()):
        raise DataError("logistic regression did not converge: are the features finite?")
    return weights.detach()


@torch.no_grad()
def _scores(model: nn.Module, test: Tensor) -> Tensor:
    return torch.cat([model(part) for part in torch.split(test, 1 << 14)])
