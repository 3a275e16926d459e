"""A run's id depends on what decides its result and on nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.config import RunConfig, canonical_json, config_hash, parse, stored_run

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


def test_a_preset_that_was_revised_is_another_run_and_others_are_as_they_were() -> None:
    def of(name: str, **more: object) -> str:
        return config_hash(parse({"steps": 100, "model": {"name": name, **more}}, RunConfig))

    assert of("nfnet_w8d2") != of("nfnet_w8d2", revision=1)
    assert of("vit_w16d2p8") == of("vit_w16d2p8", revision=1)
    assert "revision" not in canonical_json(
        parse({"steps": 1, "model": {"name": "nfnet_w8d2", "revision": 1}}, RunConfig)
    )
    assert of("vit_w16d2p8", positions="sincos") != of("vit_w16d2p8", positions="sincos", revision=1)


def test_the_configuration_of_an_old_run_is_of_the_first_revision() -> None:
    old = {"steps": 100, "model": {"name": "nfnet_w8d2", "drop_path": 0.1}}
    assert stored_run(old).model.overrides == {"drop_path": 0.1, "revision": 1}
    assert parse(old, RunConfig).model.overrides == {"drop_path": 0.1}
    again = parse(old, RunConfig).model_dump(mode="json")
    assert stored_run(again) == parse(old, RunConfig)  # of today's, its folder says which
    assert stored_run({"steps": 100, "model": {"name": "vit_w16d2p8"}}).model.overrides == {}
