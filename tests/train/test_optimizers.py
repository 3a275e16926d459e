"""Update rules agree with their references."""

import copy

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from isoflop.config import OptimConfig
from isoflop.models import create_model
from isoflop.objectives import Supervised
from isoflop.train.optimizers import AdaptiveGradientClipping, build_optimizer, parameter_groups


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def fill_gradients(model: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_adaptive_clipping_agrees_with_timm(scale: float) -> None:
    ours, theirs = small_network(), small_network()
    fill_gradients(ours, scale)
    fill_gradients(theirs, scale)
    AdaptiveGradientClipping(ours, 0.01)()
    adaptive_clip_grad(theirs.parameters(), clip_factor=0.01, eps=1e-3, norm_type=2.0)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        # A vector is one unit here, as in the paper's code; timm takes each entry of a vector as a unit.
        if mine.ndim > 1:
            torch.testing.assert_close(mine.grad, reference.grad)


def test_adaptive_clipping_bounds_a_vector_as_a_whole() -> None:
    layer = nn.Linear(1, 4)
    nn.init.constant_(layer.bias, 0.5)  # norm 1
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.bias.grad = torch.full((4,), 3.0)  # norm 6
    AdaptiveGradientClipping(layer, 0.01)()
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 3.0 * 0.01 / 6.0))


def test_adaptive_clipping_leaves_the_classifier_alone() -> None:
    model = create_model("nfnet_w8d1", num_classes=10, image_size=32, in_channels=1, seed=0)
    objective = Supervised(model)
    fill_gradients(objective, 100.0)
    AdaptiveGradientClipping(objective, 0.01)()
    for name, parameter in model.named_parameters():
        is_clipped = bool(parameter.grad.abs().mean() < 10)
        assert is_clipped == (not name.startswith("head.")), name


def test_vectors_and_spared_parameters_do_not_decay() -> None:
    model = create_model("vit_w16d2p8", num_classes=10, image_size=32, in_channels=1, seed=0)
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"])
    counted = sum(p.numel() for group in (decayed, spared) for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fused_updates_agree_with_the_plain_formula(name: str) -> None:
    model = small_network()
    reference = [p.detach().double().clone() for p in model.parameters()]
    config = OptimConfig.model_validate({"name": name, "weight_decay": 0.1, "learning_rate": 0.05})
    optimizer = build_optimizer(model, config)
    first = [torch.zeros_like(p) for p in reference]
    second = [torch.zeros_like(p) for p in reference]
    for step in range(1, 4):
        fill_gradients(model, 1.0 / step)
        gradients = [copy.deepcopy(p.grad).double() for p in model.parameters()]
        optimizer.step()
        for k, (w, g) in enumerate(zip(reference, gradients, strict=True)):
            decay = 0.1 if w.ndim > 1 else 0.0
            if name == "adamw":  # arXiv 1711.05101, algorithm 2
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = 0.999 * second[k] + 0.001 * g * g
                unit = (first[k] / (1 - 0.9**step)) / ((second[k] / (1 - 0.999**step)).sqrt() + 1e-8)
                reference[k] = w - 0.05 * (unit + decay * w)
            else:  # Nesterov momentum 0.9, decay in the gradient
                total = g + decay * w
                first[k] = total if step == 1 else 0.9 * first[k] + total
                reference[k] = w - 0.05 * (total + 0.9 * first[k])
    for mine, w in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(mine.detach().double(), w, rtol=1e-5, atol=1e-6)
