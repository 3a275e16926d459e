"""What a parameter is, its module says."""

from typing import get_args

import pytest
import timm
import torch
from torch import nn

from isoflop.config.run import ParameterKind
from isoflop.models import create_model
from isoflop.models.parameters import Kind, parameter_kinds, shapes_by_head
from isoflop.objectives.masked import Decoder

OURS = {
    "nfnet_w8d2": {
        "stem.0.weight": "kernel", "stem.0.bias": "bias", "stem.0.gain": "gain",
        "stages.0.0.skip_gain": "scale", "stages.0.0.squeeze_excite.fc1.weight": "kernel", "head.bias": "bias",
    },
    "vit_ti16_token": {
        "positions.0": "position", "prefix": "token", "norm.weight": "gain", "norm.bias": "bias",
        "stages.0.0.mixer.qkv.weight": "kernel", "stages.0.0.mixer.qkv.bias": "bias",
    },
    "vit_gigantic14_map": {"pool.probe": "token", "pool.q.weight": "kernel"},
    "caformer_s18": {
        "stages.0.0.mixer.act.scale": "scale", "stages.0.0.mixer.act.bias": "bias",
        "stages.3.0.shortcut1.gamma": "scale", "stages.0.0.norm1.weight": "gain",
    },
    "poolformer_s12": {"stages.0.0.norm1.weight": "gain", "stages.0.0.scale1.gamma": "scale"},
    "resnet_w16d14": {"norm.bias": "bias", "stages.1.0.shortcut.weight": "kernel"},
    "bit_r50x1": {"stages.0.0.norm1.weight": "gain", "stages.0.0.norm1.bias": "bias"},
}  # fmt: skip

TIMM = {
    "dm_nfnet_f0": {"stem.conv1.gain": "gain", "stages.0.0.skipinit_gain": "scale", "stem.conv1.weight": "kernel"},
    "resmlp_12_224": {"blocks.0.norm1.alpha": "scale", "blocks.0.norm1.beta": "bias", "blocks.0.ls1": "scale"},
    "swin_tiny_patch4_window7_224": {"layers.0.blocks.0.attn.relative_position_bias_table": "position"},
    "swinv2_tiny_window8_256": {"layers.0.blocks.0.attn.logit_scale": "scale", "layers.0.blocks.0.attn.q_bias": "bias"},
    "xcit_nano_12_p16_224": {"cls_token": "token", "blocks.0.attn.temperature": "scale", "blocks.0.gamma1": "scale"},
    "levit_128s": {"stages.0.blocks.0.attn.attention_biases": "position", "stem.conv1.bn.weight": "gain"},
    "vit_tiny_patch16_224": {"pos_embed": "position", "cls_token": "token", "blocks.0.attn.qkv.weight": "kernel"},
}


def test_the_configuration_knows_the_same_kinds() -> None:
    assert get_args(ParameterKind) == get_args(Kind)


@pytest.mark.parametrize("name", OURS)
def test_modules_of_ours_say_what_their_parameters_are(name: str) -> None:
    with torch.device("meta"):
        kinds = parameter_kinds(create_model(name, num_classes=10))
    assert {key: kinds[key] for key in OURS[name]} == OURS[name]


@pytest.mark.parametrize("name", TIMM)
def test_parameters_of_timm_are_known_by_their_modules_and_names(name: str) -> None:
    with torch.device("meta"):
        kinds = parameter_kinds(timm.create_model(name))
    assert {key: kinds[key] for key in TIMM[name]} == TIMM[name]


def test_modules_of_pytorch_and_decoders_are_known_too() -> None:
    decoder = parameter_kinds(Decoder((2, 2), 8, 12, depth=1, width=8, heads=2))
    assert (decoder["mask_token"], decoder["positions"]) == ("token", "position")
    attention = parameter_kinds(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    assert attention["in_proj_weight"] == "kernel"
    assert attention["in_proj_bias"] == "bias"
    assert attention["bias_k"] == "token"
    norms = parameter_kinds(nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.RMSNorm(3)))
    assert {kind for name, kind in norms.items() if name.endswith("weight")} == {"gain"}


def test_attention_is_factored_head_by_head() -> None:
    with torch.device("meta"):
        shapes = shapes_by_head(create_model("vit_s16", num_classes=10))
    assert shapes["stages.0.0.mixer.qkv.weight"] == (3, 6, 64, 384)
    assert shapes["stages.0.0.mixer.proj.weight"] == (384, 6, 64)
