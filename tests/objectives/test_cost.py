"""What an objective costs is counted as it runs, so that equal compute is equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from isoflop.config import DistilledConfig, MaskedConfig, RunConfig, SupervisedConfig, parse
from isoflop.errors import CheckpointError
from isoflop.models import Backbone, cost, create_model
from isoflop.objectives import build, objective_cost
from isoflop.objectives.distilled import open_teacher
from isoflop.train.forecast import train_flops_per_image


def masked(**values: object) -> MaskedConfig:
    return parse({"name": "masked", **values}, MaskedConfig)


def test_labels_cost_what_the_model_costs() -> None:
    assert objective_cost(SupervisedConfig(), "vit_b16") == cost("vit_b16")


def test_a_plain_vit_pays_for_visible_patches_and_a_decoder() -> None:
    """By hand, in multiply-adds: linear maps, attention (twice n²·width), and what is around the blocks."""

    def blocks(depth: int, width: int, tokens: int) -> int:
        return depth * (12 * width**2 * tokens + 2 * tokens**2 * width)

    expected = (
        49 * 768 * 768  # visible patches
        + blocks(12, 768, 50)  # 49 visible ones and the class token
        + 50 * 768 * 512
        + blocks(7, 512, 197)
        + (3 * 197 + 9 * 147) * 512**2  # the last block, of which only hidden patches are looked at
        + 2 * 147 * 197 * 512
        + 147 * 512 * 768  # pixels of hidden patches
    )
    counted = objective_cost(masked(), "mae_b16")
    assert counted.macs == expected
    assert counted.train_flops_per_image == 6 * expected


def test_vit_l_costs_a_third_of_supervised_training() -> None:
    ratio = cost("mae_l16").macs / objective_cost(masked(), "mae_l16").macs
    assert ratio == pytest.approx(3.0, abs=0.01)


def test_a_pyramid_pays_for_whole_maps() -> None:
    light = masked(decoder_depth=1, decoder_width=16, decoder_heads=2)
    for name in ("poolformer_w8d2p4", "nfnet_w8d2"):
        dense = cost(name, image_size=32, num_classes=2).macs
        assert dense * 0.95 < objective_cost(light, name, image_size=32, num_classes=2).macs < dense * 2.5


def test_a_teacher_costs_its_forward_pass_and_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"image_size": 32, "num_classes": 5}
    state = create_model("nfnet_w8d1", seed=0, **shape).state_dict()  # type: ignore[arg-type]
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    values = {"name": "distilled", "teacher": "nfnet_w8d1", "teacher_weights": str(tmp_path / "weights.safetensors")}
    config = parse({**values, "through": "logits"}, DistilledConfig)
    opened = []

    def counting(*args: Any) -> Backbone:
        opened.append(args)
        return open_teacher(*args)

    monkeypatch.setattr(build, "open_teacher", counting)
    counted = objective_cost(config, "vit_w8d1p8", **shape)  # type: ignore[arg-type]
    student, teacher = (cost(name, **shape) for name in ("vit_w8d1p8", "nfnet_w8d1"))  # type: ignore[arg-type]
    assert counted.train_flops_per_image == student.train_flops_per_image + teacher.flops
    assert counted.parameters == student.parameters
    objective_cost(config, "vit_w12d2p8", **shape)  # type: ignore[arg-type]
    assert len(opened) == 1  # for all students, as long as its file is the same
    save_file({"head.bias": torch.zeros(5)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not the weights of nfnet_w8d1"):
        objective_cost(config, "vit_w8d1p8", **shape)  # type: ignore[arg-type]


def test_a_run_is_priced_by_its_objective() -> None:
    values = {"model": {"name": "vit_w8d1p8"}, "steps": 1}
    supervised = parse(values, RunConfig)
    hidden = parse({**values, "objective": {"name": "masked", "decoder_width": 16, "decoder_heads": 2}}, RunConfig)
    assert train_flops_per_image(supervised, 5, 3) == cost("vit_w8d1p8", image_size=32, num_classes=5).flops * 3
    assert train_flops_per_image(hidden, 5, 3) != train_flops_per_image(supervised, 5, 3)
