"""With their weights, our models give their logits: timm and Hugging Face are the oracle, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models import create_model
from isoflop.models.interop import load_weights, shaped_like, to_layout
from isoflop.models.interop.names import TIMMS_OWN, in_files
from isoflop.models.presets import PRESETS

# ours, theirs, side in pixels, our options, their options. Depth is cut where it adds only time.
TIMM = (
    ("vit_ti16_token", "vit_tiny_patch16_224", 64, {}, {}),
    ("vit_s16_token", "vit_small_patch16_224", 64, {"depths": (2,)}, {"depth": 2}),
    ("vit_b32_token", "vit_base_patch32_224", 64, {"depths": (2,)}, {"depth": 2}),
    ("vit_l16_token", "vit_large_patch16_224", 32, {"depths": (1,)}, {"depth": 1}),
    ("vit_h14_token", "vit_huge_patch14_224", 28, {"depths": (1,)}, {"depth": 1, "num_classes": 1000}),
    ("vit_giant14_token", "vit_giant_patch14_224", 28, {"depths": (1,)}, {"depth": 1}),
    ("vit_gigantic14_token", "vit_gigantic_patch14_224", 28, {"depths": (1,)}, {"depth": 1}),
    ("vit_s16", "vit_small_patch16_224", 64, {"depths": (2,)},
     {"depth": 2, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("vit_b16_map", "vit_base_patch16_siglip_224", 64, {"depths": (2,)}, {"depth": 2, "num_classes": 1000}),
    ("vit_so400m14_map", "vit_so400m_patch14_siglip_224", 28, {"depths": (1,)}, {"depth": 1, "num_classes": 1000}),
    ("vit_s16_token", "vit_small_patch16_224", 64, {"depths": (2,), "qk_norm": True}, {"depth": 2, "qk_norm": True}),
    ("vit_s16_token", "vit_small_patch16_224", (32, 64), {"depths": (2,), "layer_scale": 1.0},
     {"depth": 2, "init_values": 1.0}),
    ("deit_ti16", "deit_tiny_patch16_224", 64, {}, {}),
    ("deit_ti16_distilled", "deit_tiny_distilled_patch16_224", 64, {}, {}),
    ("mixer_s32", "mixer_s32_224", 64, {}, {}),
    ("mixer_b16", "mixer_b16_224", 64, {}, {}),
    ("resmlp_s12", "resmlp_12_224", 64, {}, {}),
    ("resmlp_s24", "resmlp_24_224", 64, {}, {}),
    ("gmlp_ti16", "gmlp_ti16_224", 64, {}, {}),
    ("poolformer_s12", "poolformer_s12", 64, {}, {}),
    ("poolformer_s24", "poolformer_s24", 64, {}, {}),
    ("poolformerv2_s12", "poolformerv2_s12", 64, {}, {}),
    ("convformer_s18", "convformer_s18", 64, {}, {}),
    ("caformer_s18", "caformer_s18", 64, {}, {}),
    ("caformer_s18", "caformer_s18", (64, 96), {}, {}),
    ("pvt_v2_b0", "pvt_v2_b0", 64, {}, {}),
    ("pvt_v2_b2", "pvt_v2_b2", 64, {}, {}),
    ("nfnet_f0", "dm_nfnet_f0", 64, {}, {}),
    ("bit_r50x1", "resnetv2_50x1_bit", 64, {}, {}),
)  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """The model with every vector moved off its start, so that no parameter is without effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator)
            if parameter.ndim <= 1 or parameter.shape[:2] == (1, 1):
                parameter.add_(0.3 * noise + 0.1)
            elif not parameter.any():
                parameter.add_(0.04 * (noise - 0.5))
    return model.eval()


def timms_own(preset: str) -> dict[str, Any]:
    return TIMMS_OWN.get(PRESETS[preset][0], {})


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def images(size: int | tuple[int, int], channels: int = 3) -> Tensor:
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(2, channels, *sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("ours", "theirs", "size", "options", "their_options"), TIMM, ids=lambda v: str(v)[:40])
def test_timm_weights_give_timm_logits_and_go_back(
    ours: str, theirs: str, size: int | tuple[int, int], options: dict[str, Any], their_options: dict[str, Any]
) -> None:
    sized = {"img_size": size} if any(key in theirs for key in ("vit", "deit", "mixer", "mlp")) else {}
    sized = {} if theirs.startswith("pvt") else sized
    torch.manual_seed(0)
    peer = shaken(timm.create_model(theirs, **sized, **their_options))
    model = create_model(ours, image_size=size, **timms_own(ours), **options).eval()
    load_weights(model, peer.state_dict(), "timm")
    x = images(size)
    with torch.inference_mode():
        assert relative_error(model(x), peer(x)) < 1e-5
    back = timm.create_model(theirs, **sized, **their_options).eval()
    back.load_state_dict(shaped_like(to_layout(model, "timm"), back.state_dict()))
    with torch.inference_mode():
        assert relative_error(back(x), peer(x)) < 1e-5


# Every other size that timm has too, one block a stage: the same code at another width.
SIZES = (
    ("deit_s16", "deit_small_patch16_224"),
    ("deit_b16", "deit_base_patch16_224"),
    ("mixer_s16", "mixer_s16_224"),
    ("mixer_b32", "mixer_b32_224"),
    ("resmlp_s36", "resmlp_36_224"),
    ("resmlp_b24_8", "resmlp_big_24_224"),
    ("gmlp_s16", "gmlp_s16_224"),
    ("gmlp_b16", "gmlp_b16_224"),
    *((name, name) for name in ("poolformer_s36", "poolformer_m36", "poolformer_m48")),
    *((f"poolformerv2_{size}", f"poolformerv2_{size}") for size in ("s24", "s36", "m36", "m48")),
    *((f"{family}_{size}",) * 2 for family in ("convformer", "caformer") for size in ("s36", "m36", "b36")),
    *((f"pvt_v2_b{k}", f"pvt_v2_b{k}") for k in (1, 3, 4, 5)),
)


def cut_to_one_block_a_stage(name: str, **options: Any) -> nn.Module:
    """timm's model of that name, cut down before it takes any memory, with random weights."""
    with torch.device("meta"):
        model = timm.create_model(name, **options)
        for part in (model, *getattr(model, "stages", ())):
            if hasattr(part, "blocks"):
                part.blocks = part.blocks[:1]
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05, generator=generator)
    return shaken(model)


@pytest.mark.parametrize(("ours", "theirs"), SIZES, ids=lambda v: v)
def test_every_other_size_agrees_too(ours: str, theirs: str) -> None:
    stages = 4 if "former" in ours or "pvt" in ours else 1
    options: dict[str, Any] = {"depths": (1,) * stages}
    peer = cut_to_one_block_a_stage(theirs, num_classes=10, **({"img_size": 64} if stages == 1 else {}))
    model = create_model(ours, image_size=64, num_classes=10, **timms_own(ours), **options).eval()
    load_weights(model, peer.state_dict(), "timm")
    with torch.inference_mode():
        assert relative_error(model(images(64)), peer(images(64))) < 1e-5


LONG = (
    ("vit_b16_token", "vit_base_patch16_224", 224, {}),
    ("vit_l16_token", "vit_large_patch16_224", 224, {}),
    ("mixer_l16", "mixer_l16_224", 224, {}),
    ("gmlp_s16", "gmlp_s16_224", 224, {}),
    ("resmlp_s36", "resmlp_36_224", 224, {}),
    ("poolformerv2_m48", "poolformerv2_m48", 224, {}),
    ("convformer_b36", "convformer_b36", 224, {}),
    ("caformer_b36", "caformer_b36", 224, {}),
    *((f"pvt_v2_b{k}", f"pvt_v2_b{k}", 224, {}) for k in (1, 3, 4, 5)),
    *((f"nfnet_f{k}", f"dm_nfnet_f{k}", 128, {}) for k in range(7)),
    *(
        (f"bit_{size}", f"resnetv2_{size[1:]}_bit", 128, {})
        for size in ("r50x1", "r50x3", "r101x1", "r101x3", "r152x2", "r152x4")
    ),
)


@pytest.mark.long
@pytest.mark.timeout(1800)  # hundreds of millions of parameters, in float64 at last
@pytest.mark.parametrize(("ours", "theirs", "size", "options"), LONG, ids=lambda v: str(v)[:40])
def test_full_depth_keeps_the_agreement(ours: str, theirs: str, size: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    peer = shaken(timm.create_model(theirs))
    model = create_model(ours, image_size=size, **timms_own(ours), **options).eval()
    load_weights(model, peer.state_dict(), "timm")
    x = images(size)
    with torch.inference_mode():
        error = relative_error(model(x), peer(x))
        print(f"{ours}: {error:.1e}")
        if error >= 1e-5:  # many layers round many times: then it must be rounding and nothing else
            assert error < 5e-5
            expected = peer.double()(x.double())
            del peer  # of BiT R152x4 two copies in float64 would take 15 GB
            assert relative_error(model.double()(x.double()), expected) < 1e-12


def huggingface(kind: str) -> tuple[nn.Module, str, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    small = {"image_size": 64, "num_hidden_layers": 3, "layer_norm_eps": 1e-6, "num_labels": 10}
    ti = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, **small}
    if kind == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**ti)), "vit_ti16_token", {"depths": (3,)}
    if kind == "deit":
        peer = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**ti))
        return peer, "deit_ti16_distilled", {"depths": (3,)}
    if kind == "poolformer":
        depths = [1, 1, 2, 1]
        peer = transformers.PoolFormerForImageClassification(
            transformers.PoolFormerConfig(depths=depths, num_labels=10)
        )
        return peer, "poolformer_s12", {"depths": (1, 1, 2, 1)}
    if kind == "pvt_v2":
        # They have one eps for all norms; ours of the embeddings keep the authors' 1e-5.
        config = transformers.PvtV2Config(image_size=64, num_labels=10, layer_norm_eps=1e-5)
        return transformers.PvtV2ForImageClassification(config), "pvt_v2_b0", {"norm_eps": 1e-5}
    if kind == "bit":
        config = transformers.BitConfig(depths=[1, 2, 1, 1], num_labels=10)
        options = {"depths": (1, 2, 1, 1), "weight_eps": 1e-8}
        return transformers.BitForImageClassification(config), "bit_r50x1", options
    config = transformers.PvtConfig(image_size=64, num_labels=10, layer_norm_eps=1e-5)
    return transformers.PvtForImageClassification(config), "pvt_ti", {"norm_eps": 1e-5}


@pytest.mark.parametrize("kind", ["vit", "deit", "poolformer", "pvt", "pvt_v2", "bit"])
def test_hugging_face_weights_give_hugging_face_logits_and_go_back(kind: str) -> None:
    torch.manual_seed(0)
    peer, name, options = huggingface(kind)
    shaken(peer)
    model = create_model(name, image_size=64, num_classes=10, **options).eval()
    load_weights(model, peer.state_dict(), "huggingface")
    x = images(64)
    with torch.inference_mode():
        expected = peer(x).logits
        assert relative_error(model(x), expected) < 1e-5
    other = create_model(name, image_size=64, num_classes=10, seed=3, **options).eval()
    load_weights(other, to_layout(model, "huggingface"), "huggingface")
    with torch.inference_mode():
        assert relative_error(other(x), expected) < 1e-5
    torch.manual_seed(5)
    fresh = huggingface(kind)[0].eval()  # the library's own model, filled with what we write
    written = to_layout(model, "huggingface")
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    fresh.load_state_dict({name: written[in_files(name, "huggingface")].view(shapes[name]) for name in shapes})
    with torch.inference_mode():
        assert relative_error(fresh(x).logits, expected) < 1e-5


def test_the_mae_encoder_agrees_on_visible_patches() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(image_size=64, num_hidden_layers=2, layer_norm_eps=1e-6, mask_ratio=0.75)
    torch.manual_seed(0)
    peer = shaken(transformers.ViTMAEModel(config))
    model = create_model("mae_b16", image_size=64, depths=(2,)).eval()
    load_weights(model, peer.state_dict(), "huggingface", head=False)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = peer(images(64), noise=noise).last_hidden_state
        # Their visible patches are those with the smallest noise, in its order.
        ours = model.tokens(images(64), keep=noise.argsort(dim=1)[:, :4])
    assert relative_error(ours, expected) < 1e-5


def test_position_tables_of_another_size_are_resized() -> None:
    peer = shaken(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1))
    larger = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1).eval()
    resized = timm.layers.resample_abs_pos_embed(peer.pos_embed, (6, 6), num_prefix_tokens=1)
    larger.load_state_dict({**peer.state_dict(), "pos_embed": resized})
    model = create_model("vit_ti16_token", image_size=96, depths=(1,)).eval()
    load_weights(model, peer.state_dict(), "timm")
    with torch.inference_mode():
        assert relative_error(model(images(96)), larger(images(96))) < 1e-5
    load_weights(model, peer.state_dict(), "timm", resize_mode="bilinear")


def test_weights_of_another_architecture_are_refused_with_what_does_not_fit() -> None:
    model = create_model("vit_ti16_token", image_size=64, depths=(1,))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = timm.create_model("vit_small_patch16_224", img_size=64, depth=2).state_dict()
    with pytest.raises(ModelError, match=r"12 unexpected: blocks\.1.*mis-shaped: .*\(384, 3, 16, 16\) for \(192"):
        load_weights(model, other, "timm")
    with pytest.raises(ModelError, match=r"missing: patch_embed\.proj\.weight"):
        load_weights(model, {}, "timm")
    with pytest.raises(ModelError, match="layout"):
        load_weights(model, {}, "tinn")
    with pytest.raises(ModelError, match="fnet"):
        load_weights(create_model("fnet_s16", image_size=64), {}, "timm")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
