"""Each parameter is treated by exactly one rule, and by the right one."""

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from isoflop.errors import ConfigError
from isoflop.models import create_model
from isoflop.objectives import Supervised
from isoflop.train.optim import AdaptiveGradientClipping, freeze, parameter_groups
from tests.train.optim.networks import optim, optimizer_of, small_vit, train_some


def treatment(model: nn.Module, **keys: object) -> dict[str, dict[str, object]]:
    """Each parameter's group by name; no parameter may be in two."""
    names = {id(p): name.removeprefix("backbone.") for name, p in model.named_parameters()}
    found: dict[str, dict[str, object]] = {}
    for group in parameter_groups(model, optim(**keys)):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group
    return found


@pytest.mark.parametrize("name", ["vit_w16d2p8", "poolformer_w8d2p4", "nfnet_w8d2"])
def test_vectors_and_spared_parameters_do_not_decay_and_none_is_forgotten(name: str) -> None:
    model = Supervised(create_model(name, num_classes=10, image_size=32, seed=0))
    groups = treatment(model)
    for key, _ in model.backbone.named_parameters():
        last = key.rpartition(".")[2]
        decays = last == "weight" and "norm" not in key  # of these three; not positions, nor gains of any shape
        assert groups[key]["weight_decay"] == (0.1 if decays else 0.0), key
        assert groups[key]["is_vector"] == (not decays and "positions" not in key), key
        assert groups[key]["lr_scale"] == 1.0
    assert len(groups) == len(list(model.parameters()))


def test_the_classifier_may_decay_apart() -> None:
    groups = treatment(small_vit(), weight_decay=0.03, head_weight_decay=3.0)
    assert groups["head.weight"]["weight_decay"] == 3.0
    assert groups["head.bias"]["weight_decay"] == 0.0
    assert groups["stages.0.0.mlp.fc1.weight"]["weight_decay"] == 0.03


def test_other_kinds_decay_where_the_recipe_says_so() -> None:
    groups = treatment(small_vit(), weight_decay_on=["kernel", "bias", "gain"])
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay["norm.weight"] == decay["norm.bias"] == decay["stem.conv.weight"] == 0.1
    assert decay["positions.0"] == 0.0


def test_a_gain_without_a_gradient_stays_what_it_is() -> None:
    """With decay on it, an NFNet's gain falls from 1 to 0.53 in 2,000 steps."""
    model = Supervised(create_model("nfnet_w8d2", num_classes=10, image_size=32, seed=0))
    optimizer = optimizer_of(model, name="sgd", momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        optimizer.step()
    gains = {name: p for name, p in model.named_parameters() if name.endswith(".gain")}
    assert gains
    assert all(bool((gain == 1).all()) for gain in gains.values())


@pytest.mark.parametrize(("name", "head"), [("resnet10t", "model.fc"), ("vit_tiny_patch16_224", "model.head")])
def test_the_classifier_of_a_model_of_timm_is_known(name: str, head: str) -> None:
    model = Supervised(create_model(f"timm:{name}", num_classes=10, image_size=32, seed=0))
    groups = treatment(model, weight_decay=0.03, head_weight_decay=3.0)
    assert {key for key, group in groups.items() if group["weight_decay"] == 3.0} == {f"{head}.weight"}
    assert not groups[f"{head}.weight"]["is_hidden_matrix"]
    clipped = {id(p) for p in AdaptiveGradientClipping(model, 0.01).parameters}
    spared = {key for key, p in model.backbone.named_parameters() if id(p) not in clipped}
    assert spared == {f"{head}.weight"}


def test_layer_decay_is_that_of_beit() -> None:
    """timm's ViT in timm's groups, ours in ours: the same rate for what is the same parameter."""
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", depth=3)
    scales = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.65)
        for p in group["params"]
    }
    reference = {name: scales[id(p)] for name, p in theirs.named_parameters()}
    ours = treatment(create_model("vit_ti16_token", depths=(3,), seed=0), layer_decay=0.65)
    pairs = {
        "positions.0": "pos_embed", "prefix": "cls_token",  "head.weight": "head.weight",
        **{f"stages.0.{k}.mlp.fc1.weight": f"blocks.{k}.mlp.fc1.weight" for k in range(3)},
    }  # fmt: skip
    for mine, other in pairs.items():
        assert ours[mine]["lr_scale"] == pytest.approx(reference[other]), mine


def test_groups_say_what_is_different_for_their_parameters() -> None:
    groups = {
        "stem": {"parameters": ["stem.*", "positions.*"], "freeze": True},
        "head": {"parameters": ["head.*"], "learning_rate_scale": 10, "weight_decay": 0.0},
        "rest": {"parameters": ["stages.*", "norm.*"]},
    }
    model = small_vit()
    freeze(model, optim(groups=groups))
    found = treatment(model, groups=groups)
    assert not any(name.startswith(("stem.", "positions.")) for name in found)
    assert found["head.weight"]["lr_scale"] == 10
    assert found["head.weight"]["weight_decay"] == 0.0
    assert found["stages.0.0.mlp.fc1.weight"]["weight_decay"] == 0.1


def test_frozen_parameters_stay_and_scaled_ones_move_as_told() -> None:
    groups = {
        "stem": {"parameters": ["stem.*"], "freeze": True},
        "head": {"parameters": ["head.*"], "learning_rate_scale": 0.5},
        "rest": {"parameters": ["stages.*", "norm.*", "positions.*"]},
    }
    keys = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    scaled, plain = small_vit(), small_vit()
    start = {name: p.detach().clone() for name, p in scaled.named_parameters()}
    freeze(scaled, optim(groups=groups))
    train_some(scaled, optimizer_of(scaled, groups=groups, **keys), range(1))
    train_some(plain, optimizer_of(plain, **keys), range(1))
    for name, parameter in scaled.named_parameters():
        factor = 0.0 if "stem" in name else 0.5 if "head" in name else 1.0
        other = dict(plain.named_parameters())[name]
        torch.testing.assert_close(parameter - start[name], factor * (other - start[name]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"head": {"parameters": ["head.*"]}}, "no group names .*stem.conv.weight.* and .* more; add a group"),
        ({"all": {"parameters": ["*"]}, "h": {"parameters": ["head.*"]}}, r"head.weight \(all and h\), head.bias"),
        ({"all": {"parameters": ["*"]}, "h": {"parameters": ["haed.*"]}}, "`optim.groups.h`: no parameter is named"),
        ({"all": {"parameters": ["*"], "freeze": True}}, "every parameter is frozen"),
    ],
)
def test_parameters_without_exactly_one_rule_are_listed(groups: dict[str, object], message: str) -> None:
    model = small_vit()
    if "every" in message:
        freeze(model, optim(groups=groups))
    with pytest.raises(ConfigError, match=message):
        parameter_groups(model, optim(groups=groups))
