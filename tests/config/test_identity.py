"""A run's id depends on what decides its result and on nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.config import RunConfig, canonical_json, config_hash, parse

BASE = {"steps": 100, "model": {"name": "vit_w16p8"}}


def test_the_hash_is_twelve_hexadecimal_digits_and_the_same_in_every_process() -> None:
    code = f"from isoflop.config import *; print(config_hash(parse({BASE!r}, RunConfig)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert config_hash(parse(BASE, RunConfig)) == other
    assert len(other) == 12
    assert int(other, 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"device": "cpu"},
        {"tensorboard": False},
        {"log_every": 3},
        {"data": {"workers": 4}},
        {"evaluation": {"batch_size": 8}},
        {"checkpoint": {"every_seconds": 1.0, "keep": 5}},
        {"steps": 100.0},
        {"optim": {"weight_decay": 1e-4}},
    ],
)
def test_what_cannot_change_the_result_does_not_change_the_hash(change: dict[str, object]) -> None:
    assert config_hash(parse(BASE | change, RunConfig)) == config_hash(parse(BASE, RunConfig))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 101},
        {"seed": 1},
        {"batch_size": 32},
        {"precision": "bfloat16"},
        {"model": {"name": "vit_w24p8"}},
        {"model": {"name": "vit_w16p8", "depth": 3}},
        {"data": {"seed": 1}},
        {"data": {"source": "digits"}},
        {"optim": {"betas": [0.9, 0.95]}},
        {"schedule": {"cooldown": 0.1}},
    ],
)
def test_what_can_change_the_result_changes_the_hash(change: dict[str, object]) -> None:
    assert config_hash(parse(BASE | change, RunConfig)) != config_hash(parse(BASE, RunConfig))


def test_other_weights_of_a_teacher_under_the_same_name_make_another_run(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"

    def identity(**teacher: str) -> str:
        return config_hash(parse(BASE | {"objective": {"name": "distilled", **teacher}}, RunConfig))

    runs = {"teacher": str(tmp_path)}, {"teacher": "nfnet_f0", "teacher_weights": str(file)}
    missing = [identity(**run) for run in runs]
    file.write_bytes(b"one")
    before = [identity(**run) for run in runs]
    assert [identity(**run) for run in runs] == before
    file.write_bytes(b"two")
    after = [identity(**run) for run in runs]
    file.unlink()
    file.write_bytes(b"one")
    assert [identity(**run) for run in runs] == before
    assert len({*missing, *before, *after}) == 6


def test_other_weights_to_start_from_under_the_same_name_make_another_run(tmp_path: Path) -> None:
    file, found = tmp_path / "model.safetensors", []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found += [config_hash(parse(BASE | {"start": {"weights": str(w)}}, RunConfig)) for w in (tmp_path, file)]
    assert len(set(found)) == 4


def test_the_order_of_keys_does_not_matter() -> None:
    assert canonical_json(parse(BASE, RunConfig)) == canonical_json(
        parse(dict(reversed(list(BASE.items()))), RunConfig)
    )
