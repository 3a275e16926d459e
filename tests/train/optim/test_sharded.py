"""Every optimizer makes the same of weights that lie in pieces on two processes as of whole ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import RunConfig
from isoflop.train import read_journal
from tests.promises.chaos import EVERY_STEP, Blow, kill_after, run_config, train_whole

RULES: dict[str, dict[str, Any]] = {
    "adafactor": {"name": "adafactor", "learning_rate": 1e-3},
    "lamb-averaged": {"name": "lamb", "learning_rate": 0.01, "average": 0.9},
    "lars": {"name": "lars", "learning_rate": 1.0},
    "muon": {"name": "muon", "learning_rate": 1e-3},
    "sgd-sharpness-aware": {"name": "sgd", "learning_rate": 0.05, "sam": 0.05},
}


def short(optim: dict[str, Any], steps: int = 6, **parallel: Any) -> RunConfig:
    return run_config(
        model={"name": "vit_w32d4p8"},  # matrices that Adafactor keeps in factors
        optim={"weight_decay": 0.05, **optim},
        steps=steps,
        batch_size=12,
        log_every=1,
        data={"source": "fractals?classes=20&images=200", "heldout": 20},
        checkpoint={"every_seconds": 60} if steps == 6 else EVERY_STEP,
        schedule={},
        parallel=parallel,
    )


SHORT = ("adafactor", "sgd-sharpness-aware")


@pytest.mark.parametrize("rule", [r if r in SHORT else pytest.param(r, marks=pytest.mark.long) for r in RULES])
def test_sharded_weights_take_the_same_steps_as_whole_ones(rule: str, tmp_path: Path) -> None:
    train_whole(short(RULES[rule]), tmp_path / "whole")
    train_whole(short(RULES[rule], sharding="full"), tmp_path / "sharded", world=2)
    whole, sharded = (read_journal(tmp_path / name) for name in ("whole", "sharded"))
    # Muon's products, and Adafactor's momentum, are of half precision: rounding may fall the other way.
    tolerance = 1e-3 if rule in ("muon", "adafactor") else 1e-5
    assert [row["loss"] for row in sharded] == pytest.approx([row["loss"] for row in whole], abs=tolerance)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "sharded"))
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 10 * tolerance, name


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
def test_a_killed_sharded_run_goes_on_with_the_same_bits(rule: str, tmp_path: Path) -> None:
    config = short(RULES[rule], steps=40, sharding="full")
    train_whole(config, tmp_path / "calm", world=2)
    kill_after(config, tmp_path / "killed", 2, Blow(8))
    train_whole(config, tmp_path / "killed", world=2)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("calm", "killed"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
