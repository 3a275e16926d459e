"""Fresh weights have the statistics that each family's paper asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop.config.run import REVISED, REVISION
from isoflop.errors import ModelError
from isoflop.models import create_model
from isoflop.models.create import resolve
from isoflop.models.presets import FAMILIES, PRESETS

Rule = Callable[[Tensor], float]


def lecun(weight: Tensor) -> float:
    return 1 / math.sqrt(weight[0].numel())


def kaiming(weight: Tensor) -> float:
    return math.sqrt(2 / weight[0].numel())


def torch_default(weight: Tensor) -> float:
    return 1 / math.sqrt(3 * weight[0].numel())


def xavier(weight: Tensor) -> float:
    return math.sqrt(2 / (weight.shape[0] + weight.shape[1]))


def two_hundredths(weight: Tensor) -> float:
    return 0.02


def kaiming_over_outputs(weight: Tensor) -> float:
    return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))


# family: preset, and the standard deviation of one of its matrices
STARTS: dict[str, tuple[str, str, Rule]] = {
    "vit": ("vit_ti16", "stages.0.0.mlp.fc1.weight", xavier),  # arXiv 2010.11929, authors' code
    "mae": ("mae_b16", "stages.0.0.mlp.fc1.weight", xavier),  # arXiv 2111.06377, appendix A
    "fnet": ("fnet_s16", "stages.0.0.mlp.fc1.weight", xavier),  # a ViT whose mixer has no weights
    "deit": ("deit_ti16", "stages.0.0.mixer.qkv.weight", two_hundredths),  # arXiv 2012.12877, section 6
    "mixer": ("mixer_s32", "stages.0.0.mixer.fc1.weight", lecun),  # arXiv 2105.01601, authors' code (flax's default)
    "gmlp": ("gmlp_ti16", "stages.0.0.mixer.fc1.weight", lecun),
    "resmlp": ("resmlp_s12", "stages.0.0.mlp.fc1.weight", two_hundredths),  # arXiv 2105.03404, authors' code
    "poolformer": ("poolformer_s12", "stages.2.0.mlp.fc1.weight", two_hundredths),  # arXiv 2111.11418, authors' code
    "identityformer": ("identityformer_s12", "stages.2.0.mlp.fc1.weight", two_hundredths),  # arXiv 2210.13452
    "randformer": ("randformer_s12", "stages.2.0.mlp.fc1.weight", two_hundredths),
    "poolformerv2": ("poolformerv2_s12", "stages.2.0.mlp.fc1.weight", two_hundredths),
    "convformer": ("convformer_s18", "stages.2.0.mixer.fc1.weight", two_hundredths),
    "caformer": ("caformer_s18", "stages.2.0.mixer.qkv.weight", two_hundredths),
    "pvt": ("pvt_ti", "stages.2.0.mixer.q.weight", two_hundredths),  # arXiv 2102.12122, authors' code
    "pvt_v2": ("pvt_v2_b0", "stages.2.0.mlp.fc1.weight", two_hundredths),  # arXiv 2106.13797, authors' code
    "swin_mixer": ("swin_mixer_t_d24", "stages.2.0.mixer.weight", two_hundredths),  # arXiv 2103.14030, authors' code
    "nfnet": ("nfnet_f0", "stages.1.0.conv2.weight", lecun),  # arXiv 2102.06171: standardised, so the scale is a start
    "bit": ("bit_r50x1", "stages.1.0.conv2.weight", kaiming),  # arXiv 1912.11370: standardised as well
    "resnet": ("resnet_w16d14", "stages.1.0.conv2.weight", kaiming),  # as BiT
    "resnet9": ("resnet9_w16", "stages.2.2.body.0.0.weight", torch_default),  # DAWNBench's script
}


def test_every_family_is_checked() -> None:
    assert set(STARTS) == set(FAMILIES)


@pytest.mark.parametrize("family", STARTS)
def test_matrices_start_as_the_paper_says(family: str) -> None:
    name, parameter, rule = STARTS[family]
    stages = len(FAMILIES[family][name].depths)
    # `window` only where there is one: at 64 px the last map of a Swin-Mixer has 2x2 cells.
    options = {"window": 2} if family == "swin_mixer" else {}
    model = create_model(name, image_size=64, num_classes=10, depths=(1,) * stages, seed=0, **options)
    weight = dict(model.named_parameters())[parameter].detach()
    assert weight.numel() >= 256
    few = 4 / math.sqrt(weight.numel())  # four standard errors and more, whatever the shape of the distribution
    assert weight.std().item() == pytest.approx(rule(weight), rel=max(0.02, few))
    assert abs(weight.mean().item()) < few * rule(weight)


def test_pvt_v2_draws_its_convolutions_after_their_outputs() -> None:
    weight = dict(create_model("pvt_v2_b0", image_size=64, seed=0).named_parameters())["stem.conv.weight"].detach()
    assert weight.std().item() == pytest.approx(kaiming_over_outputs(weight), rel=0.05)


@pytest.mark.parametrize("name", ["vit_ti16", "mae_b16", "mixer_s32", "gmlp_ti16", "bit_r50x1", "resnet_w16d14"])
def test_classifiers_of_these_papers_start_at_zero(name: str) -> None:
    model = create_model(name, image_size=64, num_classes=10, seed=0)
    assert not any(parameter.any() for parameter in model.head.parameters())


def test_branches_that_start_closed_start_closed() -> None:
    nfnet = create_model("nfnet_f0", image_size=64, depths=(1, 1, 1, 1), seed=0)
    assert not any(p.item() for n, p in nfnet.named_parameters() if n.endswith("skip_gain"))  # SkipInit
    for name, start in (("poolformer_s12", 1e-5), ("poolformer_m36", 1e-6), ("resmlp_s12", 0.1), ("resmlp_s36", 1e-6)):
        stages = 1 if name.startswith("resmlp") else 4
        model = create_model(name, image_size=64, depths=(1,) * stages, seed=0)
        gammas = [p for n, p in model.named_parameters() if n.endswith(("scale1.gamma", "scale2.gamma"))]
        assert len(gammas) == 2 * stages
        assert all(p.detach().numpy() == pytest.approx(start) for p in gammas)


def uniform(weight: Tensor, bound: float) -> None:
    """`weight` is drawn uniformly between ± `bound`."""
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_mae_starts_as_its_authors_code_does() -> None:
    """models_mae.py, initialize_weights: Xavier for the fused matrix and for flattened patches, N(0, 0.02) tokens."""
    model = create_model("mae_b16", image_size=32, depths=(1,), seed=0)
    named = {name: p.detach() for name, p in model.named_parameters()}
    uniform(named["stages.0.0.mixer.qkv.weight"], math.sqrt(6 / (768 + 3 * 768)))
    uniform(named["stem.conv.weight"], math.sqrt(6 / (768 + 3 * 16 * 16)))
    uniform(named["stem.conv.bias"], 1 / math.sqrt(3 * 16 * 16))
    assert named["prefix"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(named[f"stages.0.0.{part}.bias"].any() for part in ("mixer.qkv", "mlp.fc1", "mlp.fc2"))


@pytest.mark.parametrize(
    "name", ["deit_ti16", "resmlp_s12", "poolformer_s12", "pvt_ti", "swin_mixer_t_d24", "poolformer_w16d4p4"]
)
def test_patch_embeddings_keep_pytorchs_default_where_the_authors_draw_linear_layers_alone(name: str) -> None:
    """DeiT's timm 0.3.2, PoolFormer's cls_init_weights, PVT's and Swin's _init_weights look at nn.Linear."""
    model = create_model(name, image_size=64, seed=0)
    conv = dict(model.named_modules())["stem.conv"]
    uniform(conv.weight.detach(), 1 / math.sqrt(conv.weight[0].numel()))
    assert conv.bias.any()


def test_the_metaformer_baselines_draw_their_convolutions_too() -> None:
    model = create_model("poolformerv2_s12", image_size=64, depths=(1, 1, 1, 1), seed=0)
    conv = dict(model.named_modules())["downsamples.2.patches.conv"]
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not conv.bias.any()


def test_squeeze_excite_starts_with_haikus_default() -> None:
    """A normal distribution of σ = 1/√fan-in, cut at 2σ: hk.Linear does not widen it."""
    model = create_model("nfnet_f0", image_size=64, depths=(1, 1, 1, 1), seed=0)
    weight = dict(model.named_parameters())["stages.2.0.squeeze_excite.fc1.weight"].detach()
    std = 1 / math.sqrt(weight.shape[1])
    assert weight.abs().max() <= 2 * std
    assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "steps"), [("vit_ti16", {"positions": "sincos"}, 47), ("mae_b16", {}, 192)]
)
def test_fixed_positions_have_the_frequencies_of_their_authors(name: str, options: dict[str, Any], steps: int) -> None:
    """big_vision divides by n - 1 (vit.py, posemb_sincos_2d), MAE by n (util/pos_embed.py)."""
    table = create_model(name, image_size=64, depths=(1,), seed=0, **options).state_dict()["positions.0"][0]
    omega = 10_000.0 ** -(np.arange(table.shape[1] // 4) / steps)
    expected = np.concatenate([np.sin(3 * omega), np.cos(3 * omega), np.sin(2 * omega), np.cos(2 * omega)])
    np.testing.assert_allclose(table[2 * 4 + 3].numpy(), expected, atol=1e-6)  # row 2, column 3


def test_nfnets_stochastic_depth_is_that_of_its_authors() -> None:
    """nfnet.py: rate·k/N in block k of N; base.py, StochDepth: kept branches are not divided (scale_by_keep=False)."""
    model = create_model("nfnet_f0", image_size=32, depths=(1, 1, 1, 2), seed=0)
    blocks = [block for stage in model.stages for block in stage]
    assert [block.drop_rate for block in blocks] == pytest.approx([0.25 * k / 5 for k in range(5)])
    last = blocks[-1]
    last.skip_gain.data.fill_(1.0)
    x = torch.randn(1, 1, 1, 1536).expand(64, 1, 1, 1536)
    with torch.no_grad():
        whole = (last.eval()(x) - x)[0]
        parts = last.train()(x) - x
    kept = parts.flatten(1).any(dim=1)
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(parts[kept], whole.expand(int(kept.sum()), 1, 1, 1536))


def test_gelu_is_the_one_of_the_authors() -> None:
    assert all(config.activation == "gelu_tanh" for config in FAMILIES["nfnet"].values())  # jax.nn.gelu's default
    assert all(config.activation == "gelu" for family in ("deit", "mae") for config in FAMILIES[family].values())


def test_heads_of_convformers_and_caformers_are_those_of_the_authors_scripts() -> None:
    for family, rates in {"convformer": [0.0] * 4, "caformer": [0.0, 0.4, 0.4, 0.5]}.items():
        names = [f"{family}_{size}" for size in ("s18", "s36", "m36", "b36")]
        assert [FAMILIES[family][name].dropout for name in names] == rates
    head = create_model("caformer_s36", image_size=64, depths=(1, 1, 1, 1), seed=0).head
    assert (head.norm.eps, head.dropout.p) == (1e-5, 0.4)
    x = torch.ones(4, 512)
    assert not torch.equal(head.train()(x)[0], head(x)[1])


@pytest.mark.parametrize(("name", "at", "cells"), [("poolformer_s12_pppa", 3, 49), ("poolformer_s12_ppaa", 2, 196)])
def test_hybrids_with_attention_have_layernorm_and_positions_in_one_stage(name: str, at: int, cells: int) -> None:
    """metaformer_pppa_s12_224 and metaformer_ppaa_s12_224 of the PoolFormer repository."""
    model = create_model(name, seed=0)
    tables = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("positions.")}
    assert set(tables) == {f"positions.{at}"}
    assert tables[f"positions.{at}"].shape[1] == cells
    assert not tables[f"positions.{at}"].any()
    assert all(type(block.norm1).__name__ == "LayerNorm" for stage in model.stages for block in stage)


def test_earlier_revisions_are_what_their_runs_were_trained_with() -> None:
    for name, (family, now) in PRESETS.items():
        then = resolve(name, revision=1)[1]
        assert (then != now) == name.startswith(REVISED), name
        assert resolve(name, revision=REVISION) == (family, now)
    old = resolve("nfnet_f0", revision=1)[1]
    assert (old.activation, old.scale_by_keep) == ("gelu", True)
    blocks = [
        b for s in create_model("nfnet_f0", image_size=32, depths=(1, 1, 2, 1), revision=1, seed=0).stages for b in s
    ]
    assert [block.drop_rate for block in blocks] == pytest.approx([0.25 * k / 4 for k in range(5)])
    assert resolve("vit_s16", revision=1, positions="sincos")[1].positions == "sincos_mae"
    assert resolve("poolformer_s12_pppa", revision=1)[1].norm == "group"
    with pytest.raises(ModelError, match="`revision` is a number from 1 to 2, not 3"):
        create_model("vit_s16", revision=3)
