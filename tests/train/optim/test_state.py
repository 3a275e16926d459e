"""What optimizers remember: how much it is, and that a resumed run goes on bit for bit."""

import pytest
import torch
from torch import nn

from isoflop.models import create_model
from isoflop.train.checkpoints import pack, unpack
from isoflop.train.optim import WeightAverage
from isoflop.train.optim.build import state_bytes
from tests.train.optim.networks import NAMES, fill_gradients, optim, optimizer_of, small_vit, train_some


def measured_bytes(optimizer: torch.optim.Optimizer) -> int:
    slots = [slot for state in optimizer.state.values() for slot in state.values()]
    return sum(slot.numel() * slot.element_size() for slot in slots if slot.numel() > 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str) -> None:
    model = small_vit()
    optimizer = optimizer_of(model, name=name, average=0.99)
    average = WeightAverage(optimizer, 0.99)
    train_some(model, optimizer, range(3))
    average.update(2)
    # A file stores tensors densely, without their strides.
    packed = {key: tensor.contiguous().clone() for key, tensor in pack(model, optimizer).items()}
    other = small_vit()
    restored = optimizer_of(other, name=name, average=0.99)
    unpack(packed, other, restored)
    train_some(model, optimizer, range(3, 6))
    train_some(other, restored, range(3, 6))
    average.update(5)
    WeightAverage(restored, 0.99).update(5)
    for (key, one), two in zip(pack(model, optimizer).items(), pack(other, restored).values(), strict=True):
        assert one.dtype == two.dtype, key
        assert torch.equal(one, two), key


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_the_state_is_foretold(name: str) -> None:
    model = small_vit()
    optimizer = optimizer_of(model, name=name)
    train_some(model, optimizer, range(1))
    assert state_bytes(model, optim(name=name)) == measured_bytes(optimizer)


def test_adafactor_takes_half_the_memory_of_the_weights() -> None:
    """ViT-Ti/16, measured: 0.542. The larger the matrices, the closer it comes to one half."""
    model = create_model("vit_ti16", seed=0)
    optimizer = optimizer_of(model, name="adafactor")
    train_some(model, optimizer, range(1))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert 0.5 < measured_bytes(optimizer) / weights < 0.545


def test_adafactor_of_vit_g_takes_half_the_memory_of_its_weights() -> None:
    with torch.device("meta"):
        model = create_model("vit_gigantic14_map", num_classes=29_593)
    weights = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert state_bytes(model, optim(name="adafactor")) / weights == pytest.approx(0.5046, abs=0.0005)
    assert state_bytes(model, optim(name="adamw")) == 2 * weights


def test_the_running_average_is_the_published_one() -> None:
    """arXiv 2102.06171: the decay at step t is min(decay, (1 + t)/(10 + t))."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    average = WeightAverage(optimizer, 0.3)
    expected = layer.weight.detach().double().clone()
    for step in range(8):
        fill_gradients(layer, 1.0, seed=step)
        optimizer.step()
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        new = layer.weight.detach().double()
        expected = new.clone() if step == 0 else decay * expected + (1 - decay) * new
    last = layer.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(layer.weight, last)
