"""A budget that branches off a trunk gives the very run that it would have been alone."""

from pathlib import Path

import pytest

from isoflop.train import read_journal
from tests.promises.chaos import run_config, train_whole


def test_a_branch_equals_a_separate_run_bit_for_bit(tmp_path: Path) -> None:
    short, long = run_config(steps=30), run_config(steps=75)
    trunk = tmp_path / "trunk"
    train_whole(short, tmp_path / "short", trunk)
    train_whole(long, tmp_path / "branch", trunk)
    train_whole(long, tmp_path / "alone")
    assert (tmp_path / "branch/model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes()
    branch, alone = read_journal(tmp_path / "branch"), read_journal(tmp_path / "alone")
    assert branch[0]["step"] > 21 - 7  # what the short run had trained, 0.7 of 30 steps, was not trained again
    assert len(branch) < len(alone)
    tail = alone[-len(branch) :]
    assert [(row["step"], row["loss"], row["samples"]) for row in branch] == [
        (row["step"], row["loss"], row["samples"]) for row in tail
    ]


@pytest.mark.long
def test_a_damaged_trunk_costs_time_and_nothing_else(tmp_path: Path) -> None:
    short, long = run_config(steps=60), run_config(steps=150)
    trunk = tmp_path / "trunk"
    train_whole(short, tmp_path / "short", trunk)
    (tensors,) = trunk.glob("step-*/tensors.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    train_whole(long, tmp_path / "branch", trunk)
    train_whole(long, tmp_path / "alone")
    assert (tmp_path / "branch/model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes()
