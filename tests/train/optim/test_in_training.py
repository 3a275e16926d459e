"""What `[optim]` says is what happens in a run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import RunConfig, parse
from isoflop.errors import DataError
from isoflop.train import read_journal, train
from isoflop.train.checkpoints import latest_checkpoint
from tests.train.optim.networks import NAMES


def run(directory: Path, optim: dict[str, object], **keys: object) -> RunConfig:
    config = parse(
        {
            "model": {"name": "vit_w16d2p8"},
            "steps": 12,
            "batch_size": 16,
            "log_every": 1,
            "tensorboard": False,
            "threads": 1,
            "data": {"source": "fractals?classes=4&images=100", "heldout": 16},
            "optim": {"learning_rate": 0.01, **optim},
            **keys,
        },
        RunConfig,
    )
    train(config, directory)
    return config


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_the_loss(name: str, tmp_path: Path) -> None:
    rate = 0.2 if name == "lars" else 0.03 if name in ("sgd", "lamb") else 0.003
    run(tmp_path / "run", {"name": name, "learning_rate": rate}, steps=40)
    losses = [row["loss"] for row in read_journal(tmp_path / "run")]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_exported_weights_are_the_average_where_there_is_one(tmp_path: Path) -> None:
    run(tmp_path / "plain", {})
    run(tmp_path / "averaged", {"average": 0.9})
    checkpoint = latest_checkpoint(tmp_path / "averaged" / "checkpoints")
    assert checkpoint is not None
    plain, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "averaged"))
    assert not torch.equal(plain["head.weight"], averaged["head.weight"])
    assert torch.equal(checkpoint.tensors["model.backbone.head.weight"], plain["head.weight"])
    held = [
        row.get("heldout_loss")
        for row in (read_journal(tmp_path / "plain")[-1], read_journal(tmp_path / "averaged")[-1])
    ]
    assert held[0] != held[1]


def test_statistics_of_batches_are_those_of_the_weights_and_not_of_the_place_uphill(tmp_path: Path) -> None:
    found = []
    for radius in (None, 0.5):
        run(tmp_path / str(radius), {"sam": radius}, model={"name": "timm:resnet10t"}, steps=1)
        found.append(load_file(tmp_path / str(radius) / "model.safetensors"))
    plain, uphill = found
    statistics = [name for name in plain if "running_" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(plain[name], uphill[name]) for name in statistics)


def test_a_tiny_radius_of_sam_changes_next_to_nothing_and_a_large_one_does(tmp_path: Path) -> None:
    losses = {}
    for radius in (None, 1e-6, 0.5):
        run(tmp_path / str(radius), {"name": "sgd", "sam": radius})
        losses[radius] = read_journal(tmp_path / str(radius))[-1]["loss"]
    assert losses[1e-6] == pytest.approx(losses[None], abs=1e-4)
    assert losses[0.5] != pytest.approx(losses[None], abs=1e-4)


def test_frozen_groups_are_exported_as_they_began(tmp_path: Path) -> None:
    groups = {
        "stem": {"parameters": ["stem.*"], "freeze": True},
        "rest": {"parameters": ["stages.*", "norm.*", "head.*", "positions.*"]},
    }
    run(tmp_path / "short", {"groups": groups}, steps=1)
    run(tmp_path / "long", {"groups": groups}, steps=6)
    short, long = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "long"))
    assert torch.equal(short["stem.conv.weight"], long["stem.conv.weight"])
    assert not torch.equal(short["head.weight"], long["head.weight"])


def test_data_with_other_classes_than_expected_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 classes, but `data.num_classes` = 1000"):
        run(tmp_path / "run", {}, data={"source": "fractals?classes=4", "num_classes": 1000, "heldout": 16})
