"""A run can start from trained weights, at another size, under another classifier, and is exact all the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.config import StartConfig
from isoflop.errors import CheckpointError, ModelError
from isoflop.models import create_model
from isoflop.train import read_journal, train
from isoflop.train.record import MEASURED
from isoflop.train.start import replace_head, start_from
from tests.promises.chaos import run_config


def saved(path: Path, name: str = "vit_w12d2p8", **shape: int) -> Path:
    model = create_model(name, **{"num_classes": 7, "image_size": 32, "in_channels": 1, **shape}, seed=1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def test_the_body_is_taken_over_and_a_new_classifier_starts_at_zero(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    model = create_model("vit_w12d2p8", num_classes=10, image_size=32, in_channels=1, seed=2)
    start_from(model, StartConfig(weights=str(path)))
    for name, tensor in load_file(path).items():
        if not name.startswith("head."):
            assert torch.equal(model.state_dict()[name], tensor)
    assert not model(torch.randn(2, 1, 32, 32)).any()


def test_the_classifier_is_kept_if_so_wished(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    start_from(model, StartConfig(weights=str(path), head="keep"))
    assert torch.equal(model.state_dict()["head.weight"], load_file(path)["head.weight"])


def test_positions_are_resized_to_another_image_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=48, in_channels=1, seed=2)
    start_from(model, StartConfig(weights=str(path)))
    old = load_file(path)["positions.0"].view(1, 4, 4, 12).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(old, (6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.state_dict()["positions.0"], expected.permute(0, 2, 3, 1).reshape(1, 36, 12))


def test_timm_models_are_resized_too(tmp_path: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    path = saved(tmp_path / "a.safetensors", name, image_size=64, in_channels=3)
    model = create_model(name, num_classes=3, image_size=96, in_channels=3, seed=2)
    start_from(model, StartConfig(weights=str(path)))
    assert model.state_dict()["model.pos_embed"].shape == (1, 37, 192)
    assert not model(torch.randn(1, 3, 96, 96)).any()


@pytest.mark.parametrize("other", ["vit_w16d2p8", "vit_w12d2p8", "nfnet_w8d1"])
def test_weights_of_another_architecture_are_refused_in_one_line(tmp_path: Path, other: str) -> None:
    path = saved(tmp_path / "a.safetensors", other, in_channels=3)
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    with pytest.raises(CheckpointError, match="another architecture than vit_w12d2p8: ") as caught:
        start_from(model, StartConfig(weights=str(path)))
    assert "\n" not in str(caught.value)


def test_what_is_no_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    for path in ("a.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="not readable as weights"):
            start_from(model, StartConfig(weights=str(tmp_path / path)))


def test_batch_normalisation_before_the_classifier_needs_a_plain_one() -> None:
    start = StartConfig(weights="x", head="batchnorm")
    model = create_model("vit_w12d2p8", num_classes=7, image_size=32, in_channels=1, seed=2)
    replace_head(model, start)
    assert [name for name, _ in model.head.named_parameters()] == ["1.weight", "1.bias"]
    with pytest.raises(ModelError, match="plain linear classifier"):
        replace_head(create_model("timm:resnet18", num_classes=7, image_size=32, seed=2), start)


def test_a_fine_tune_that_was_cut_off_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    train(run_config(steps=20, tensorboard=False), tmp_path / "pretrained")
    weights = str(tmp_path / "pretrained" / "model.safetensors")
    config = run_config(
        steps=30,
        start={"weights": weights, "head": "batchnorm"},
        data={"source": "digits", "heldout": 64, "augment": "crop_flip"},
    )
    train(config, tmp_path / "whole")

    class CutOff(Exception): ...

    def cut(row: dict[str, object]) -> None:
        if row["step"] == 14:
            raise CutOff

    with pytest.raises(CutOff):
        train(config, tmp_path / "cut", on_row=cut)
    train(config, tmp_path / "cut")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [[{k: v for k, v in row.items() if k not in MEASURED} for row in read_journal(tmp_path / d)]
            for d in ("whole", "cut")]  # fmt: skip
    assert rows[0] == rows[1]
