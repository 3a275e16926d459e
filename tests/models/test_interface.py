"""Every backbone keeps one interface: logits, features, tokens, maps, and the names that training asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from isoflop.errors import ModelError
from isoflop.models import Backbone, cost, create_model
from isoflop.models.cost import describe, find_models
from isoflop.models.create import resolve
from isoflop.models.metaformer import MetaFormer
from isoflop.models.presets import FAMILIES, PRESETS

# The smallest of each family, cut down to two blocks a stage.
ONE_OF_EACH = (
    ("vit_ti16", {"depths": (2,)}),
    ("vit_ti16_token", {"depths": (2,)}),
    ("vit_ti16_map", {"depths": (2,)}),
    ("mae_b16", {"depths": (1,)}),
    ("deit_ti16_distilled", {"depths": (2,)}),
    ("mixer_s32", {"depths": (2,)}),
    ("resmlp_s12", {"depths": (2,)}),
    ("gmlp_ti16", {"depths": (2,)}),
    ("fnet_s16", {"depths": (2,)}),
    ("poolformer_s12", {}),
    ("identityformer_s12", {}),
    ("randformer_s12", {}),
    ("poolformerv2_s12", {}),
    ("convformer_s18", {"depths": (1, 1, 1, 1)}),
    ("caformer_s18", {"depths": (1, 1, 1, 1)}),
    ("pvt_ti", {"depths": (1, 1, 1, 1)}),
    ("pvt_v2_b0", {}),
    ("swin_mixer_t_d24", {"depths": (2, 1, 1, 1), "window": 2}),
    ("nfnet_f0", {"depths": (1, 1, 1, 1)}),
    ("bit_r50x1", {"depths": (1, 1, 1, 1)}),
    ("resnet_w16d14", {}),
    ("resnet_w8d8p2", {}),
    ("resnet9_w4", {}),
    ("timm:resnet18", {}),
    ("timm:vit_tiny_patch16_224", {"depth": 2}),
    ("timm:convnext_atto", {}),
    ("timm:regnety_002", {}),
)


def images(model: Backbone, count: int = 2) -> Tensor:
    shape = (count, model.in_channels, *model.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_one_of_each_family_is_tested_here() -> None:
    tested = {create_model(name, image_size=64, seed=0, **options).family for name, options in ONE_OF_EACH}
    assert tested >= set(FAMILIES)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH, ids=lambda v: v if isinstance(v, str) else "")
def test_shapes_are_what_the_attributes_say(name: str, options: dict[str, Any]) -> None:
    # timm's ViT and ours take any size; non-square, and five channels as of a satellite.
    model = create_model(name, num_classes=7, image_size=(64, 128), in_channels=5, seed=0, **options).eval()
    x = images(model)
    with torch.inference_mode():
        assert model(x).shape == (2, 7)
        assert model.features(x).shape == (2, model.num_features)
        assert model.tokens(x).shape[::2] == (2, model.num_features)
        for stride, width, feature_map in zip(
            model.feature_strides, model.feature_widths, model.feature_maps(x), strict=True
        ):
            assert feature_map.shape == (2, width, 64 // stride, 128 // stride)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH, ids=lambda v: v if isinstance(v, str) else "")
def test_layers_count_up_from_the_stem_and_name_every_parameter(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, image_size=64, seed=0, **options)
    ids = model.layer_ids()
    parameters = dict(model.named_parameters())
    assert set(ids) == set(parameters)
    assert set(ids.values()) == set(range(max(ids.values()) + 1))
    assert all(ids[key] == max(ids.values()) for key in ids if key.startswith("head"))
    config: Any = getattr(model, "config", None)
    if config is not None:
        assert max(ids.values()) == sum(config.depths) + 1


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH, ids=lambda v: v if isinstance(v, str) else "")
def test_every_parameter_gets_a_gradient(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, image_size=64, seed=0, **options)
    with torch.no_grad():  # heads and gains that start at zero would hide what is behind them
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.02)
    model(images(model)).square().sum().backward()
    learned = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in learned.values())
    silent = [key for key, parameter in learned.items() if not parameter.grad.any()]  # type: ignore[union-attr]
    # Pooling minus the token cancels what all tokens share: the bias of the norm before it has no effect at all.
    if name == "poolformer_s12":
        silent = [key for key in silent if not key.endswith("norm1.bias")]
    assert silent == []


def test_presets_are_built_from_their_rows_at_no_cost_in_memory() -> None:
    for name, (family, _) in PRESETS.items():
        with torch.device("meta"):
            if name.endswith(("f7+", "gigantic14_map", "r152x4")):
                model = create_model(name)
                assert model.family == family
                assert all(parameter.is_meta for parameter in model.parameters())


def test_stochastic_depth_leaves_the_mean_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    model = create_model("poolformer_s12", image_size=32, depths=(1, 1, 1, 1), drop_path=0.5, layer_scale=1.0, seed=0)
    x = torch.randn(1, 3, 32, 32).expand(512, -1, -1, -1)
    model.train()
    last = model.stages[-1][0]  # type: ignore[index]
    entered = torch.randn(1, 1, 1, 512, generator=torch.Generator().manual_seed(1)).expand(512, 1, 1, 512)
    with torch.no_grad():
        out = last(entered)
        assert model(x).isfinite().all()
    assert 150 < (out - entered).flatten(1).any(dim=1).logical_not().sum() < 360


@pytest.mark.parametrize("keep_count", [1, 5])
def test_patches_left_out_are_not_seen(keep_count: int) -> None:
    model = create_model("mae_b16", image_size=64, depths=(2,), seed=0).eval()
    assert isinstance(model, MetaFormer)
    x = images(model)
    keep = torch.stack([torch.randperm(16)[:keep_count] for _ in range(2)])
    hidden = x.unflatten(2, (4, 16)).unflatten(4, (4, 16)).clone()
    for image, kept in enumerate(keep):
        for patch in set(range(16)) - set(kept.tolist()):
            hidden[image, :, patch // 4, :, patch % 4] = 9.0
    with torch.inference_mode():
        torch.testing.assert_close(
            model.tokens(x, keep), model.tokens(hidden.flatten(4, 5).flatten(2, 3), keep), rtol=0, atol=0
        )
        everything = torch.arange(16).expand(2, -1)
        torch.testing.assert_close(model.tokens(x, everything), model.tokens(x))


def test_a_timm_model_is_timm_model() -> None:
    torch.manual_seed(3)
    peer = timm.create_model("resnet18", num_classes=7).eval()
    torch.manual_seed(3)
    model = create_model("timm:resnet18", num_classes=7, image_size=64).eval()
    x = images(model)
    with torch.inference_mode():
        assert torch.equal(model(x), peer(x))
    assert cost("timm:resnet50").parameters == 25_557_032


def test_fresh_weights_have_the_statistics_of_their_papers() -> None:
    vit = create_model("vit_b16", image_size=32, depths=(1,), seed=0)
    weights = dict(vit.named_parameters())
    assert weights["positions.0"].std().item() == pytest.approx(768**-0.5, rel=0.05)
    query = weights["stages.0.0.mixer.qkv.weight"][:768]
    assert query.std().item() == pytest.approx((2 / (768 + 768)) ** 0.5, rel=0.01)  # xavier of its own square matrix
    assert query.abs().max().item() <= (6 / (768 + 768)) ** 0.5
    assert weights["stem.conv.weight"].std().item() == pytest.approx((3 * 16 * 16) ** -0.5, rel=0.01)
    assert weights["stages.0.0.mlp.fc1.bias"].std().item() == pytest.approx(1e-6, rel=0.1)
    assert not weights["head.weight"].any()
    pool = dict(create_model("poolformer_s12", image_size=32, seed=0).named_parameters())
    assert pool["stages.2.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    torch.testing.assert_close(pool["stages.0.0.scale1.gamma"].detach(), torch.full((64,), 1e-5))
    ca = dict(create_model("caformer_s18", image_size=32, depths=(1, 1, 1, 1), seed=0).named_parameters())
    assert ca["stages.0.0.mlp.act.scale"].item() == 1
    assert ca["stages.0.0.mlp.act.bias"].item() == 0
    assert "stages.0.0.shortcut1.gamma" not in ca
    assert set(ca["stages.3.0.shortcut1.gamma"].tolist()) == {1.0}
    gate = dict(create_model("gmlp_ti16", image_size=64, depths=(1,), seed=0).named_parameters())
    assert set(gate["stages.0.0.mixer.gate.bias"].tolist()) == {1.0}


def test_an_nfnet_keeps_the_scale_of_its_signal() -> None:
    # Widths as of F0; gains at one instead of zero, so that the branches count; no strides, because the mean of four
    # cells of noise has a quarter of its variance.
    depths = (1, 2, 3, 2)
    model = create_model(
        "nfnet_f0", image_size=32, depths=depths, strides=(1, 1, 1, 1), drop_path=0.0, activation="relu", seed=0
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("skip_gain"):
                parameter.fill_(1.0)
        variances = [
            feature_map.var(dim=(0, 2, 3)).mean().item() for feature_map in model.feature_maps(images(model, 8))
        ]
    # The shortcut of a stage's first block starts again at one, and each of n branches adds α² (α = 0.2).
    assert variances == pytest.approx([1 + n * 0.04 for n in depths], rel=0.25)


def test_one_value_is_that_of_all_stages() -> None:
    one, named = resolve("poolformer_s12", mixers="identity"), resolve("poolformer_s12_identity")
    assert one == ("poolformer", named[1])
    with pytest.raises(ModelError, match=r"`mixers` are of .*, not 'nothing'"):
        create_model("poolformer_s12", mixers="nothing")


BAD: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("vit_b17", {}, "did you mean `vit_b16`"),
    ("timm:resnet19", {}, "did you mean `timm:resnet18`"),
    ("timm:resnet18", {"drop_pth_rate": 0.1}, "drop_pth_rate"),
    ("vit_b16", {"drop_pth": 0.1}, "did you mean `drop_path`"),
    ("vit_b16", {"image_size": 100}, "100x100 pixels do not divide into patches of 16"),
    ("nfnet_f0", {"image_size": 50}, "do not divide by the stem's 4"),
    ("bit_r50x1", {"image_size": 50}, "do not divide by the stem's 4"),
    ("vit_b16", {"heads": (7,)}, "768 cannot be split into 7 heads"),
    ("vit_b16", {"heads": (0,)}, "`heads` must be at least 1"),
    ("vit_b16", {"image_size": (224,)}, "`image_size` is a number of pixels"),
    ("vit_b16", {"drop_path": 1.5}, "`drop_path` is a rate"),
    ("poolformer_s12", {"stem_stride": 0}, "`stem_stride` must be at least 1"),
    ("bit_r50x1", {"factor": 0}, "`factor` must be at least 1"),
    ("resnet_w16d18p4", {"image_size": 50}, "do not divide by the stem's 4"),
    ("resnet_w16d14", {"stem_stride": 3}, "`stem_stride` is 1, 2 or 4, not 3"),
    ("resnet_w16d14", {"width": 40, "group_width": 12}, "a norm of 3 groups"),
    ("nfnet_f0", {"dropout": -0.1}, "`dropout` is a rate"),
    ("nfnet_f0", {"depths": (1,)}, "equally many entries, not 1, 4, 4"),
    ("vit_b16", {"num_classes": 0}, "`num_classes` must be at least 1"),
    ("vit_b16", {"in_channels": 0}, "`in_channels` must be at least 1"),
    ("vit_b16", {"num_classes": True}, "`num_classes` is a whole number"),
    ("vit_b16", {"in_channels": 3.0}, "`in_channels` is a whole number"),
    ("vit_b16", {"image_size": "224"}, "`image_size` is a number of pixels"),
    ("vit_b16", {"depths": (6, 6)}, "`widths` has 1 entries for 2 stages"),
    ("vit_b16", {"depths": "deep"}, "`depths` = 'deep'"),
    ("vit_b16", {"drop_path": "a lot"}, "`drop_path` = 'a lot'"),
    ("vit_b16", {"activation": "gulu"}, "`activation` is one of"),
    ("vit_b16", {"mixers": ("attentoin",)}, "`mixers` are of"),
    ("vit_b16", {"pool": "token"}, "needs `prefix_tokens`"),
    ("vit_b16", {"distilled": True}, "needs `prefix_tokens` = 2"),
    ("vit_b16_token", {"mixers": ("pooling",)}, "no room for prefix tokens"),
    ("poolformer_s12", {"pool_size": 4}, "odd size"),
    ("vit_b16", {"positions": "sincos", "widths": (770,), "heads": (10,)}, "multiples of 4"),
    ("gmlp_ti16", {"mlp_widths": (5,)}, "splits its hidden width"),
    ("swin_mixer_t_d24", {"window": 5, "image_size": 224}, "windows of 5"),
    ("pvt_ti", {"image_size": 16}, "too"),
    ("vit_b16", {"image_size": 10**9}, "`image_size` must be at most 65536"),
    ("vit_b16", {"seed": 2**64}, "`seed` is a whole number"),
    ("vit_b16", {"norm_eps": -1.0}, "`norm_eps` must be at least 0"),
    ("vit_b16", {"layer_scale": float("nan")}, "`layer_scale` must be finite"),
    ("nfnet_f0", {"widths": (1, 1, 1, 1)}, "too narrow"),
    ("timm:resnet18", {"in_chans": 1}, "`in_chans` is set by `in_channels`"),
    ("timm:resnet18", {"patch_size": 3}, "timm cannot build"),
    ("timm:vit_tiny_patch16_224", {"image_size": (80, 8)}, "images of 80x8 pixels are too small"),
    ("timm:resnet18", {"drop_rate": "high"}, "`drop_rate` is numbers, not 'high'"),
    ("timm:resnet18", {"drop_rate": True}, "`drop_rate` is numbers, not True"),
    ("timm:resnet18", {"block_args": "none"}, "takes no option `block_args`"),
    ("timm:resnet18", {"pretrained": "https://example.com/w.pth"}, "`pretrained` is true or false"),
)


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[f"{n}-{list(o)}" for n, o, _ in BAD])
def test_what_cannot_be_built_is_refused_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("(", r"\(")) as refused:
        create_model(name, **options)
    assert "\n" not in str(refused.value)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"takes images of \(3, 64, 64\)"):
        create_model("vit_ti16", image_size=64, depths=(1,))(torch.zeros(1, 3, 32, 32))


def test_ablations_change_what_they_say() -> None:
    base = PRESETS["poolformer_s12"][1]
    for name, (_, config) in PRESETS.items():
        if name.startswith("poolformer_s12_"):
            assert (
                1
                <= sum(getattr(base, field.name) != getattr(config, field.name) for field in dataclasses.fields(base))
                <= (6 if config.positions == "learned" else 3)  # attention brings a norm and positions with it
            )
            model = create_model(name, num_classes=2, image_size=64, seed=0)
            assert model(images(model)).isfinite().all()


def test_the_listing_finds_and_describes() -> None:
    assert find_models("vit b16 map") == ["vit_b16_map"]
    assert find_models("vit_?16_token") == [
        "vit_s16_token",
        "vit_m16_token",
        "vit_b16_token",
        "vit_l16_token",
        "vit_h16_token",
    ]
    assert find_models("*") == list(PRESETS)
    assert find_models("f4", family="nfnet") == ["nfnet_f4", "nfnet_f4+"]
    with pytest.raises(ModelError, match="did you mean `vit_ti16`"):
        find_models("vitt")
    with pytest.raises(ModelError, match="did you mean `nfnet`"):
        find_models(family="nfnett")
    row = describe("vit_w16d2p8", image_size=32, measure=True)
    assert row.parameters == cost("vit_w16d2p8", image_size=32).parameters
    assert row.optimizer_bytes["adamw"] == 8 * row.parameters
    assert row.images_per_second is not None
    assert row.images_per_second > 0


@pytest.mark.parametrize("name", ["vit_w16d2p8", "poolformer_w16d4p4", "nfnet_w16d2", "resnet_w16d8"])
def test_activation_memory_is_about_what_autograd_keeps_per_image(name: str) -> None:
    def kept(count: int) -> int:
        model = create_model(name, image_size=32, seed=0)
        storages: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(images(model, count))
        assert out.shape[0] == count
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    measured = (kept(40) - kept(8)) / 32
    assert describe(name, image_size=32).activation_bytes == pytest.approx(measured, rel=0.15)
