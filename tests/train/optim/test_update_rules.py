"""Every update rule is the one of its paper, computed here in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.train.optim.networks import fill_gradients, optimizer_of, small_network, small_vit, train_some

State = dict[str, Tensor]
RATE, DECAY, STEPS = 0.05, 0.1, 5


def adamw(w: Tensor, g: Tensor, t: int, s: State) -> Tensor:
    """arXiv 1711.05101, algorithm 2."""
    s["m"] = 0.9 * s.get("m", torch.zeros_like(w)) + 0.1 * g
    s["v"] = 0.999 * s.get("v", torch.zeros_like(w)) + 0.001 * g * g
    unit = (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-8)
    return w - RATE * (unit + (DECAY if w.ndim > 1 else 0) * w)


def sgd(w: Tensor, g: Tensor, t: int, s: State) -> Tensor:
    """Nesterov momentum 0.9, decay in the gradient."""
    total = g + (DECAY if w.ndim > 1 else 0) * w
    s["m"] = total if t == 1 else 0.9 * s["m"] + total
    return w - RATE * (total + 0.9 * s["m"])


def adafactor(w: Tensor, g: Tensor, t: int, s: State) -> Tensor:
    """arXiv 1804.04235, algorithm 4, as 2106.04560, section 3.4 has it: no clipping, half-precision momentum."""
    beta2 = min(0.999, 1 - t**-0.8)
    square = g * g
    if w.ndim == 2 and min(w.shape) >= 32:
        s["r"] = beta2 * s.get("r", torch.zeros(w.shape[0]).double()) + (1 - beta2) * square.mean(1)
        s["c"] = beta2 * s.get("c", torch.zeros(w.shape[1]).double()) + (1 - beta2) * square.mean(0)
        second = torch.outer(s["r"], s["c"]) / s["r"].mean()
    else:
        s["v"] = beta2 * s.get("v", torch.zeros_like(w)) + (1 - beta2) * square
        second = s["v"]
    moment = 0.9 * s.get("m", torch.zeros_like(w)) + 0.1 * g / second.sqrt()
    s["m"] = moment.float().bfloat16().double()
    return w - RATE * (moment + (DECAY if w.ndim > 1 else 0) * w)


def lamb(w: Tensor, g: Tensor, t: int, s: State) -> Tensor:
    """arXiv 1904.00962, algorithm 2; vectors are not adapted."""
    s["m"] = 0.9 * s.get("m", torch.zeros_like(w)) + 0.1 * g
    s["v"] = 0.999 * s.get("v", torch.zeros_like(w)) + 0.001 * g * g
    unit = (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-6)
    if w.ndim == 1:
        return w - RATE * unit
    unit = unit + DECAY * w
    return w - RATE * w.norm() / unit.norm() * unit


def lars(w: Tensor, g: Tensor, t: int, s: State) -> Tensor:
    """arXiv 1708.03888 as in MAE's util/lars.py, trust coefficient 0.001; vectors are not adapted."""
    total = g
    if w.ndim > 1:
        total = g + DECAY * w
        total = 0.001 * w.norm() / total.norm() * total
    s["m"] = total if t == 1 else 0.9 * s["m"] + total
    return w - RATE * s["m"]


FORMULAS: dict[str, Callable[[Tensor, Tensor, int, State], Tensor]] = {
    "adamw": adamw, "sgd": sgd, "adafactor": adafactor, "lamb": lamb, "lars": lars,
}  # fmt: skip


def test_without_nesterov_momentum_is_plain() -> None:
    ours, theirs = small_network(), small_network()
    plain = optimizer_of(ours, name="sgd", nesterov=False, weight_decay=0.0)
    torchs = torch.optim.SGD(theirs.parameters(), lr=RATE, momentum=0.9)
    for t in range(1, STEPS + 1):
        for model, optimizer in ((ours, plain), (theirs, torchs)):
            fill_gradients(model, 1.0 / t, seed=t)
            optimizer.step()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_optimizer_does_what_its_paper_says(name: str) -> None:
    model = small_network()
    weights = [p.detach().double().clone() for p in model.parameters()]
    states: list[State] = [{} for _ in weights]
    optimizer = optimizer_of(model, name=name)
    for t in range(1, STEPS + 1):
        fill_gradients(model, 1.0 / t, seed=t)
        gradients = [p.grad.double() for p in model.parameters()]
        optimizer.step()
        for k, gradient in enumerate(gradients):
            weights[k] = FORMULAS[name](weights[k], gradient, t, states[k])
    for mine, reference in zip(model.parameters(), weights, strict=True):
        # One rounding to half precision that falls the other way moves a weight by 0.4 % of an update.
        tolerance = 5e-4 if name == "adafactor" else 2e-6
        torch.testing.assert_close(mine.detach().double(), reference, rtol=1e-5, atol=tolerance)


def test_adafactor_agrees_with_timm_but_for_the_rounding_of_its_momentum() -> None:
    from timm.optim.adafactor_bv import AdafactorBigVision

    ours, theirs = small_network(), small_network()
    optimizer = optimizer_of(ours, name="adafactor")
    reference = AdafactorBigVision(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim == 1]},
        ],
        lr=RATE, min_dim_size_to_factor=32, momentum_dtype="float32",
    )  # fmt: skip
    train_some(ours, optimizer, range(STEPS))
    for step in range(STEPS):
        fill_gradients(theirs, 1.0 / (1 + step), seed=step)
        reference.step()
    for mine, other, start in zip(ours.parameters(), theirs.parameters(), small_network().parameters(), strict=True):
        assert (mine - other).norm() < 0.004 * (other - start).norm()


def test_lamb_agrees_with_timm() -> None:
    from timm.optim.lamb import Lamb

    ours, theirs = small_network(), small_network()
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    reference = Lamb(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=RATE, max_grad_norm=None,
    )  # fmt: skip
    train_some(ours, optimizer_of(ours, name="lamb"), range(STEPS))
    train_some(theirs, _with_scale(reference), range(STEPS))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def _with_scale(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["lr_scale"] = 1.0
    return optimizer


def test_muon_makes_updates_of_hidden_matrices_nearly_orthogonal() -> None:
    """One step from rest: the singular values of the update are about 0.2·√max(rows, columns)·rate, all of them."""
    model = small_network()
    before = model.hidden.weight.detach().clone()
    optimizer = optimizer_of(model, name="muon", weight_decay=0.0)
    train_some(model, optimizer, range(1))
    values = torch.linalg.svdvals((before - model.hidden.weight).double()) / (RATE * 0.2 * 288**0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_leaves_all_but_hidden_matrices_to_adamw() -> None:
    muon, plain = small_vit(), small_vit()
    train_some(muon, optimizer_of(muon, name="muon"), range(3))
    train_some(plain, optimizer_of(plain, name="adamw"), range(3))
    same = {
        name
        for (name, one), other in zip(muon.named_parameters(), plain.parameters(), strict=True)
        if torch.equal(one, other)
    }
    hidden = {name for name, p in muon.named_parameters() if p.ndim == 2 and "head" not in name}
    assert {name for name, _ in muon.named_parameters()} - same == hidden
    assert len(hidden) == 4 * 4  # query-key-value, projection and two of the MLP in each block
