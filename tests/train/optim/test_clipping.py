"""Adaptive gradient clipping is the paper's."""

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from isoflop.models import create_model
from isoflop.objectives import Supervised
from isoflop.train.optim import AdaptiveGradientClipping
from tests.train.optim.networks import fill_gradients, small_network


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_adaptive_clipping_agrees_with_timm(scale: float) -> None:
    ours, theirs = small_network(), small_network()
    for network in (ours, theirs):
        fill_gradients(network, scale)
        with torch.no_grad():
            network.get_parameter("hidden.weight")[:20].mul_(1e-4)  # units so small that 1e-3 takes their place
    AdaptiveGradientClipping(ours, 0.01)()
    adaptive_clip_grad(theirs.parameters(), clip_factor=0.01, eps=1e-3, norm_type=2.0)
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # A vector is one unit here, as in the paper's code; timm takes each entry of a vector as a unit.
        if mine.ndim > 1 and not name.startswith("head."):
            torch.testing.assert_close(mine.grad, reference.grad)


def test_adaptive_clipping_bounds_a_vector_as_a_whole() -> None:
    layer = nn.Linear(1, 4)
    nn.init.constant_(layer.bias, 0.5)  # norm 1
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.bias.grad = torch.full((4,), 3.0)  # norm 6
    AdaptiveGradientClipping(layer, 0.01)()
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 3.0 * 0.01 / 6.0))


def test_a_gain_is_one_unit_whatever_its_shape() -> None:
    """As in DeepMind's code, where it is a vector; units of (C, 1, 1, 1) would be clipped one by one."""
    model = create_model("nfnet_w8d1", num_classes=10, image_size=32, in_channels=1, seed=0)
    gain = model.get_parameter("stem.1.gain")
    gain.grad = torch.zeros_like(gain)
    gain.grad[0] = 6.0
    AdaptiveGradientClipping(model, 0.01)()
    assert gain.grad.norm().item() == pytest.approx(0.01 * gain.norm().item())


def test_adaptive_clipping_leaves_the_kernel_of_the_classifier_alone() -> None:
    model = create_model("nfnet_w8d1", num_classes=10, image_size=32, in_channels=1, seed=0)
    objective = Supervised(model)
    fill_gradients(objective, 100.0)
    AdaptiveGradientClipping(objective, 0.01)()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        is_clipped = bool(parameter.grad.abs().mean() < 10)
        assert is_clipped == (name != "head.weight"), name
