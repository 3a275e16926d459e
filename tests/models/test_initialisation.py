"""Fresh weights have the statistics that each family's paper asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from torch import Tensor

from isoflop.models import create_model
from isoflop.models.presets import FAMILIES

Rule = Callable[[Tensor], float]


def lecun(weight: Tensor) -> float:
    return 1 / math.sqrt(weight[0].numel())


def kaiming(weight: Tensor) -> float:
    return math.sqrt(2 / weight[0].numel())


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


@pytest.mark.parametrize("name", ["vit_ti16", "mae_b16", "mixer_s32", "gmlp_ti16", "bit_r50x1"])
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
