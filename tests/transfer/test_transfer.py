"""Transfer of a trained run, beside the same backbone with random weights."""

from pathlib import Path

import pytest
import torch

from isoflop.config import TransferConfig
from isoflop.errors import CheckpointError, DataError
from isoflop.models import create_model
from isoflop.train import train
from isoflop.transfer import load_backbone, transfer
from tests.promises.chaos import run_config


def test_a_trained_run_transfers_to_real_digits(tmp_path: Path) -> None:
    train(run_config(steps=60), tmp_path / "run")
    model, config = load_backbone(tmp_path / "run")
    untrained, _ = load_backbone(tmp_path / "run", random_weights=True)
    assert config.steps == 60
    assert not torch.equal(model.state_dict()["head.weight"], untrained.state_dict()["head.weight"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = transfer(
        model, TransferConfig(shots=5, seeds=(0, 1), finetune_steps=40, finetune_learning_rate=1e-2), "trained"
    )
    assert [(row["protocol"], row["shots"], row["seeds"]) for row in rows] == [("ridge", 5, 2), ("finetune", 5, 2)]
    assert all(0.15 < row["accuracy_mean"] <= 1.0 for row in rows)  # ten classes: chance is 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again = transfer(
        model, TransferConfig(shots=5, seeds=(0, 1), finetune_steps=40, finetune_learning_rate=1e-2), "trained"
    )
    assert again == rows


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a finished run"):
        load_backbone(tmp_path)


def test_weights_of_another_run_are_refused(tmp_path: Path) -> None:
    train(run_config(steps=20), tmp_path / "a")
    train(run_config(steps=20, model={"name": "vit_w16d2p8"}), tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not readable"):
        load_backbone(tmp_path / "a")


def test_images_with_other_channels_than_the_backbone_are_refused() -> None:
    model = create_model("vit_w12d2p8", num_classes=10, image_size=32, in_channels=4, seed=0)
    with pytest.raises(DataError, match="4"):
        transfer(model, TransferConfig(), "x")
