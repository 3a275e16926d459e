"""The ladders: small models from 2e5 to 1e9 FLOPs an image that a study can compare at equal compute."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.layers import BatchNormAct2d, GroupNormAct, StdConv2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.errors import ModelError
from isoflop.models import cost, create_model, family_ladder, ladder_of
from isoflop.models.presets import LADDERS, SIDES

FAMILIES = tuple(LADDERS)


@pytest.mark.parametrize(("stride", "norm"), [(1, "group"), (2, "group"), (4, "group"), (2, "batch")])
def test_a_resnet_is_timm_s_of_basic_blocks(stride: int, norm: str) -> None:
    """With standardised weights and GroupNorm, or plain ones and BatchNorm."""
    ours = create_model("resnet_w32d18", num_classes=5, image_size=64, stem_stride=stride, norm=norm, seed=0)
    conv = partial(StdConv2d, eps=1e-10) if norm == "group" else create_conv2d
    theirs = ResNetV2(
        [2, 2, 2, 2], (32, 64, 128, 256), 5, stem_chs=32, stem_type="fixed", basic=True, bottle_ratio=1.0,
        norm_layer=partial(GroupNormAct, group_size=16) if norm == "group" else BatchNormAct2d, conv_layer=conv,
    )  # fmt: skip
    if stride < 4:
        theirs.stem = nn.Sequential()
        theirs.stem.add_module("conv", conv(3, 32, 3, stride=stride))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():  # gains and the classifier are constant at the start
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    state = dict(ours.state_dict())
    for name in list(state):
        stage, _, block = name.removeprefix("stages.").partition(".")
        new = f"stages.{stage}.blocks.{block}" if name.startswith("stages.") else name
        new = new.replace("shortcut", "downsample.conv").replace("stem.", "stem.conv.").replace("head.", "head.fc.")
        state[new] = state.pop(name)
    state["head.fc.weight"] = state["head.fc.weight"][:, :, None, None]
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


def test_the_cost_of_resnets_is_that_of_their_papers() -> None:
    """arXiv 1512.03385: ResNet-18 and 34 on ImageNet (table 1: 1.8e9 and 3.6e9 multiply-adds); 20 layers on CIFAR-10
    (table 6: 0.27 M parameters; 4.1e7 multiply-adds are 27 x 16 x 32^2 + 6 x 3 convolutions)."""
    assert cost("resnet_w64d18p4", image_size=224).macs == pytest.approx(1.8e9, rel=0.02)
    assert cost("resnet_w64d34p4", image_size=224).macs == pytest.approx(3.6e9, rel=0.02)
    cifar = cost("resnet_w16d20", image_size=32, num_classes=10)
    assert cifar.parameters == pytest.approx(0.27e6, rel=0.02)
    assert cifar.macs == pytest.approx(4.1e7, rel=0.02)


@pytest.mark.parametrize(
    "preset", [*(family_ladder(family)[-1] for family in FAMILIES), "poolformer_s12_nomlp", "swin_mixer_b_d24"]
)
def test_blocks_that_repeat_are_counted_as_if_each_were_run(preset: str) -> None:
    with torch.device("meta"):
        model = create_model(preset, num_classes=10, image_size=256).eval()
        images = torch.empty(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert counter.get_total_flops() == cost(preset, image_size=256, num_classes=10).flops


@pytest.mark.parametrize("side", [*SIDES[:-1], pytest.param(SIDES[-1], marks=pytest.mark.long)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_ladder_begins_where_a_core_is_used_and_rises_in_small_steps(family: str, side: int) -> None:
    """A quarter of the rate of `F.linear` was measured for each ladder's first model (`docs/models.md`)."""
    flops = [cost(name, image_size=side, num_classes=10).flops for name in family_ladder(family, side)]
    assert flops == sorted(flops)
    assert 1.5e6 <= flops[0] <= {32: 5e6, 64: 1e7, 128: 1.1e8}[side]
    assert flops[-1] > {32: 7e8, 64: 1e9, 128: 3e9}[side]
    assert max(b / a for a, b in itertools.pairwise(flops)) <= 2.4


def test_images_get_the_ladder_of_the_nearest_size_and_other_models_have_none() -> None:
    assert family_ladder("vit", 56) == family_ladder("vit", 64)
    assert family_ladder("vit", 40) == family_ladder("vit", 32)
    assert family_ladder("vit", 384) == family_ladder("vit", 128)
    assert family_ladder("vit", 224)[0].endswith("p16")
    assert ladder_of("vit_w32d2p4", 64) == family_ladder("vit", 64)  # of the family, though no rung
    assert {"vit_w4d1p8", "vit_w8d1p8", *family_ladder("vit", 32)} <= set(ladder_of("vit_w8d1p8"))
    assert ladder_of("resnet_w16d8p2") == family_ladder("resnet", 32)  # though other images have had it before
    assert "resnet_w8d14p2" in ladder_of("resnet_w8d14p2")
    assert ladder_of("vit_b16") == ()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_size", [32, (32, 64)])
def test_a_small_model_learns_to_tell_four_images_apart(family: str, image_size: int | tuple[int, int]) -> None:
    model = create_model(family_ladder(family)[0], num_classes=4, image_size=image_size, in_channels=1, seed=0)
    images = torch.randn(4, 1, *model.image_size, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), torch.arange(4))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_fixes_the_weights_and_leaves_the_global_randomness_alone(family: str) -> None:
    name = family_ladder(family)[0]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = create_model(name, image_size=32, seed=7).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = create_model(name, image_size=32, seed=7).state_dict()
    other = create_model(name, image_size=32, seed=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_an_unknown_ladder_is_refused() -> None:
    with pytest.raises(ModelError, match="vit, poolformer, convformer, caformer, nfnet, resnet"):
        family_ladder("vitt")


@pytest.mark.parametrize("family", FAMILIES)
def test_even_the_smallest_models_learn_digits(family: str) -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:256], dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=4, mode="bilinear")
    labels = torch.tensor(digits.target[:256])
    model = create_model(family_ladder(family)[0], num_classes=10, image_size=32, in_channels=1, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    losses = []
    for step in range(40):
        batch = slice(32 * (step % 8), 32 * (step % 8 + 1))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) / 4 < 0.8 * sum(losses[:4]) / 4


def test_a_resnet9_is_dawnbench_s() -> None:
    """Layer by layer as David Page's network, written down with PyTorch's modules: 6.6 M parameters at width 64."""

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    ours = create_model("resnet9_w8", num_classes=10, image_size=32, seed=0)
    parts = [conv(3, 8), [*conv(8, 16), nn.MaxPool2d(2)], [*conv(16, 16), *conv(16, 16)]]
    parts += [[*conv(16, 32), nn.MaxPool2d(2)], [*conv(32, 64), nn.MaxPool2d(2)], [*conv(64, 64), *conv(64, 64)]]
    theirs = nn.ModuleList(nn.Sequential(*part) for part in parts)
    head = nn.Linear(64, 10, bias=False)
    mine = [value for name, value in ours.state_dict().items() if not name.startswith("head")]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), mine, strict=True)))
    head.load_state_dict(ours.head.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for train in (True, False):
        x = images
        ours.train(train), theirs.train(train)
        for k, part in enumerate(theirs):
            x = x + part(x) if k in (2, 5) else part(x)
        logits = 0.125 * head(F.max_pool2d(x, 4).flatten(1))
        torch.testing.assert_close(ours(images), logits, rtol=1e-4, atol=1e-5)
    assert cost("resnet9_w64", image_size=32, num_classes=10).parameters == pytest.approx(6.57e6, rel=0.01)
    larger = create_model("resnet9_w8p2", num_classes=10, image_size=64)
    assert larger.feature_maps(torch.zeros(2, 3, 64, 64))[-1].shape == (2, 64, 4, 4)
