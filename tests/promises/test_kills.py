"""A run killed at any moment and started again ends as if nothing had happened."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.promises.chaos import run_config, train_under_fire, train_whole
from tests.promises.same import check_same


def test_kills_change_neither_weights_nor_metrics_nor_samples(tmp_path: Path) -> None:
    config = run_config(steps=80)
    train_whole(config, tmp_path / "calm")
    hits = train_under_fire(config, tmp_path / "fire", kills=4, chance=random.Random(0))
    assert hits >= 2
    check_same(config, tmp_path / "calm", tmp_path / "fire")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", ["vit", "poolformer", "nfnet", "resnet"])
def test_a_hundred_kills_change_nothing(tmp_path: Path, family: str) -> None:
    changes: dict[str, Any] = {"steps": 400}
    if family == "poolformer":
        changes |= {"model": {"name": "poolformer_w8d2p8", "drop_path": 0.1}}
    if family == "nfnet":
        changes |= {
            "model": {"name": "nfnet_w8d2"},
            "optim": {"name": "sgd", "learning_rate": 0.3, "agc": 0.01, "weight_decay": 2e-5},
        }
    if family == "resnet":
        changes |= {"model": {"name": "resnet_w8d8p2"}, "optim": {"name": "sgd", "learning_rate": 0.1}}
    config = run_config(**changes)
    train_whole(config, tmp_path / "calm")
    chance = random.Random(family)
    hits, trial = 0, 0
    while hits < 40:  # of each of four families
        fire = tmp_path / f"fire-{trial}"
        hits += train_under_fire(config, fire, kills=10, chance=chance)
        check_same(config, tmp_path / "calm", fire)
        trial += 1
    print(f"{family}: {hits} kills over {trial} runs: weights, metrics and samples as undisturbed")
