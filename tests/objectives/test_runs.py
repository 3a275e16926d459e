"""Objectives in whole runs: what they leave behind, and that their masks do not depend on how a run went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import RunConfig
from isoflop.data.sources.arrays import ArraySource
from isoflop.errors import CheckpointError, ConfigError, DataError, ModelError
from isoflop.models import create_model
from isoflop.runs.reconstructions import read_reconstructions
from isoflop.train import read_journal, train
from tests.promises.chaos import run_config, when_asked

LIGHT = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}


def config(name: str = "vit_w8d1p8", **changes: Any) -> RunConfig:
    values: dict[str, Any] = {"model": {"name": name}, "objective": LIGHT, "steps": 30, "evaluation": {"every": 15}}
    return run_config(**{**values, "optim": {"learning_rate": 0.01}, **changes})


@pytest.mark.parametrize("name", ["vit_w8d1p8", "poolformer_w8d2p4", "nfnet_w8d1"])
def test_masked_training_learns_and_leaves_the_backbone_alone(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    result = train(config(name, steps=60, evaluation={"every": 20}), run)
    made = read_reconstructions(run)
    assert result.state == "done"
    assert result.heldout_accuracy is None
    assert result.probe_accuracy is not None
    assert result.probe_accuracy > 0.15, "of 20 classes"
    assert [row["rankme"] > 1 for row in read_journal(run) if "heldout_loss" in row] == [True] * 3
    assert result.heldout_loss < 0.85, "1 is what predicting each patch's mean would give"
    backbone = create_model(name, image_size=32, num_classes=20, in_channels=1)
    backbone.load_state_dict(load_file(run / "model.safetensors"))
    assert all(part.startswith("decoder.") for part in load_file(run / "objective.safetensors"))
    assert [picture.step for picture in made] == [20, 40, 60]
    assert all(picture.is_normalised for picture in made)
    seen = ~np.broadcast_to(made[-1].hidden.repeat(8, 1).repeat(8, 2)[:, None], made[-1].images.shape)
    assert np.array_equal(made[-1].images[seen], made[-1].reconstructed[seen])
    assert not np.array_equal(made[0].reconstructed, made[-1].reconstructed)


def test_a_masked_run_that_is_interrupted_ends_with_the_same_bits(tmp_path: Path) -> None:
    train(config(), tmp_path / "calm")
    assert train(config(), tmp_path / "run", stop=when_asked(11)).state == "preempted"
    train(config(), tmp_path / "run")
    for name in ("model.safetensors", "objective.safetensors"):
        calm, run = load_file(tmp_path / "calm" / name), load_file(tmp_path / "run" / name)
        assert all(torch.equal(calm[part], run[part]) for part in calm), name


def test_in_parts_of_a_batch_masks_are_the_same(tmp_path: Path) -> None:
    whole = train(config(steps=20), tmp_path / "whole")
    parts = train(config(steps=20, parallel={"device_batch_size": 8}), tmp_path / "parts")
    assert parts.heldout_loss == pytest.approx(whole.heldout_loss, rel=1e-4)


def test_distillation_from_a_run_learns_and_keeps_no_teacher(tmp_path: Path) -> None:
    train(config("nfnet_w8d1", objective="supervised"), tmp_path / "teacher")
    imitate = {"name": "distilled", "teacher": str(tmp_path / "teacher"), "through": "logits", "kind": "soft"}
    result = train(config(objective=imitate), tmp_path / "run")
    assert result.heldout_accuracy is not None
    assert not (tmp_path / "run" / "objective.safetensors").exists()
    assert load_file(tmp_path / "run" / "model.safetensors").keys() == create_model("vit_w8d1p8").state_dict().keys()
    facts = tmp_path / "teacher" / "data.json"
    other = json.loads(facts.read_text()) | {"class_names": ["bee", *json.loads(facts.read_text())["class_names"][1:]]}
    facts.write_text(json.dumps(other))
    with pytest.raises(DataError, match=r"teacher: learnt other classes \(bee\) than .* has \("):
        train(config(objective=imitate), tmp_path / "other")
    facts.write_text("[]")
    with pytest.raises(CheckpointError, match=r"teacher/data.json: not readable"):
        train(config(objective=imitate), tmp_path / "other")


def test_images_without_labels_can_be_masked(tmp_path: Path) -> None:
    source = ArraySource(
        np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8),
        np.full(64, -1, dtype=np.int64),
        uri="plain",
        class_names=(),
        fingerprint="plain",
        rows=np.arange(64),
        statistics=((0.5,) * 3, (0.25,) * 3),
    )
    result = train(config(batch_size=8, steps=20), tmp_path / "run", data=(source, source))
    assert result.state == "done"
    assert result.probe_accuracy is None
    assert result.rankme is not None


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="leaves no visible patch of 16"):
        train(config(objective={**LIGHT, "ratio": 0.95}), run)
    with pytest.raises(ModelError, match="needs every token in its place"):
        train(config("fnet_s16"), run)
    assert not run.exists()
