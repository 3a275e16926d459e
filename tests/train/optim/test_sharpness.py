"""Sharpness-aware minimisation takes the gradient uphill and leaves the weights where they were."""

import torch
import torch.nn.functional as F
from torch import nn

from isoflop.train.optim import uphill


def test_the_gradient_is_the_one_at_the_worst_point_nearby() -> None:
    """On ½xᵀAx the gradient at x is Ax, and the SAM gradient A(x + ρ Ax/‖Ax‖) (arXiv 2010.01412, eq. 2)."""
    torch.manual_seed(0)
    a = torch.randn(5, 5).double()
    a = a @ a.T
    x = nn.Parameter(torch.randn(5).double())
    start = x.detach().clone()
    (0.5 * x @ a @ x).backward()
    with uphill([x], 0.05):
        (0.5 * x @ a @ x).backward()
    gradient = a @ start
    torch.testing.assert_close(x.grad, a @ (start + 0.05 * gradient / gradient.norm()))
    assert torch.equal(x, start)


def test_the_distance_is_that_of_all_weights_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    start = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(torch.randn(6, 4)), torch.arange(6) % 3).backward()
    with uphill(list(model.parameters()), 0.05):
        moved = [(p.detach() - s).square().sum() for p, s in zip(model.parameters(), start, strict=True)]
        assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(torch.stack(moved).sum().sqrt(), torch.tensor(0.05), rtol=1e-4, atol=0)
