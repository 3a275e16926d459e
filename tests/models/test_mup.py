"""μP: what it does to starts and rates, and that activations then change alike at every width."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.coordinates import coordinate_changes
from isoflop.config import OptimConfig, RunConfig, canonical_json, config_hash, parse
from isoflop.errors import ConfigError, ModelError
from isoflop.models import create_model
from isoflop.models.mup import scale_start, width_scales
from isoflop.train.optim import parameter_groups

WIDTHS = (16, 64, 256)


def vit(width: int, **more: Any) -> Any:
    shape = {"widths": (width,), "mlp_widths": (4 * width,), "heads": (width // 16,), **more}
    return create_model("vit_w16d2p8", num_classes=10, image_size=32, seed=0, **shape)


def test_at_the_base_width_nothing_changes() -> None:
    model, plain = vit(64), vit(64)
    scale_start(model, 64)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert {scale.fan_in for scale in width_scales(model, 64).values()} == {1.0}


def test_hidden_matrices_and_the_output_learn_slower_and_the_rest_as_before() -> None:
    """Table 3 of the paper, for a width of four times the base."""
    scales = width_scales(vit(64), 16)
    slow = {name for name, scale in scales.items() if scale.fan_in == 4.0}
    assert {scale.fan_in for scale in scales.values()} == {1.0, 4.0}
    assert slow == {
        "head.weight",
        *(f"stages.0.{k}.{part}.weight" for k in (0, 1) for part in ("mixer.qkv", "mixer.proj", "mlp.fc1", "mlp.fc2")),
    }
    groups = parameter_groups(vit(64), OptimConfig(mup=16, weight_decay=0.1))
    products = {group["weight_decay"] * group["lr_scale"] for group in groups if group["weight_decay"]}
    assert {group["lr_scale"] for group in groups} == {1.0, 0.25}
    assert products == {0.1}


@pytest.mark.parametrize("init", ["vit", "mae", "trunc_normal", "metaformer", "lecun", "pvt"])
def test_starts_have_the_deviations_of_the_paper_whatever_drew_them(init: str) -> None:
    def deviations(width: int) -> dict[str, float]:
        torch.manual_seed(0)
        model = vit(width, init=init)
        if init in ("vit", "mae", "lecun"):  # whose heads are zeros: something to be scaled
            torch.nn.init.normal_(model.head.weight, std=model.head.weight.shape[1] ** -0.5)
        scale_start(model, 32)
        return {name: p.std().item() for name, p in model.named_parameters() if p.ndim > 1}

    small, large = deviations(32), deviations(128)
    ratios = {name: large[name] / small[name] for name in small}
    for name, ratio in ratios.items():
        wanted = 0.25 if name == "head.weight" else 0.5 if ".mixer." in name or ".mlp." in name else 1.0
        assert ratio == pytest.approx(wanted, rel=0.12), name


def test_stages_and_convolutions_over_the_width_are_hidden_and_depthwise_ones_are_not() -> None:
    model = create_model("poolformer_w16d4p4", num_classes=10, image_size=32, seed=0)
    scales = width_scales(model, 8)
    assert scales["downsamples.0.patches.conv.weight"].fan_in == 2.0
    assert scales["stem.conv.weight"].fan_in == 1.0
    caformer = create_model("caformer_s18", num_classes=10, image_size=64)
    convolution = next(name for name, p in caformer.named_parameters() if name.endswith("mixer.conv.weight"))
    assert width_scales(caformer, 32)[convolution].fan_in == 1.0


def run(width: int, mup: int | None, **model: Any) -> RunConfig:
    shape = {"name": "vit_w16d2p8", "widths": [width], "mlp_widths": [4 * width], "heads": [width // 16], **model}
    return parse(
        {
            "model": shape,
            "steps": 4,
            "batch_size": 32,
            "optim": {"learning_rate": 0.01, "mup": mup or "none", "clip": "none"},
            "data": {"source": "fractals?classes=20", "heldout": 32},
        },
        RunConfig,
    )


@pytest.mark.parametrize(
    "model", [{}, {"mixers": ["pooling"], "norm": "group", "init": "trunc_normal", "positions": "none"}]
)
def test_activations_change_alike_at_every_width_and_without_it_they_do_not(model: dict[str, Any]) -> None:
    def slope(mup: int | None) -> dict[str, float]:
        changes = [coordinate_changes(run(width, mup, **model)) for width in WIDTHS]
        return {
            name: float(np.polyfit(np.log(WIDTHS), np.log([change[name] for change in changes]), 1)[0])
            for name in ("stages.0.1", "head")
        }

    flat, steep = slope(16), slope(None)
    assert all(abs(value) < 0.25 for value in flat.values()), flat
    assert steep["head"] > 0.4, steep
    assert steep["stages.0.1"] > flat["stages.0.1"] + 0.2, (steep, flat)


def test_where_it_is_not_defined_it_is_refused() -> None:
    nfnet = create_model("nfnet_w8d2", num_classes=10, image_size=32)
    with pytest.raises(ModelError, match=r"nfnet_w8d2: width transfer .* give that family `optim.mup = \"none\"`"):
        width_scales(nfnet, 8)
    with pytest.raises(ConfigError, match=r"`optim.mup` is defined for AdamW, not for sgd"):
        parse({"steps": 10, "model": {"name": "vit_w16d2p8"}, "optim": {"name": "sgd", "mup": 16}}, RunConfig)
    with pytest.raises(ConfigError, match="is defined for supervised training, not for masked"):
        parse({"steps": 10, "model": {"name": "vit_w16d2p8"}, "objective": "masked", "optim": {"mup": 16}}, RunConfig)


def test_runs_made_before_there_was_mup_keep_their_ids() -> None:
    base = {"steps": 10, "model": {"name": "vit_w16d2p8"}}
    plain = parse(base, RunConfig)
    assert '"mup"' not in canonical_json(plain)
    assert config_hash(plain) != config_hash(parse({**base, "optim": {"mup": 16}}, RunConfig))
