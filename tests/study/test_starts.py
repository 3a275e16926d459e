"""Families that start from trained weights: the classifier of a probe, triage, images as the weights want them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from isoflop.config import RunConfig, StudyConfig, parse
from isoflop.data import open_split
from isoflop.errors import CheckpointError, ConfigError, DataError, StudyError
from isoflop.runs.directory import read_status
from isoflop.study import starts
from isoflop.study.plan import plan_study
from isoflop.study.starts import open_starts
from isoflop.train import train
from isoflop.train.device import normalize
from isoflop.train.loop import build_objective
from isoflop.transfer import open_backbone

MODEL = "resnet9_w4"
BASE: dict[str, Any] = {
    "tensorboard": False,
    "precision": "float32",
    "data": {"source": "digits", "heldout": 200, "image_size": 16},
    "device": "cpu",
}
LIMIT = {"name": "toy", "budget": 2e11, "target_budget": 4e10, "budgets": [4e9, 8e9, 1.6e10]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt a little, normalised by moments of its own."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    data = {**BASE["data"], "mean": [0.5], "std": [0.5]}
    run = {**BASE, "data": data, "model": {"name": MODEL}, "steps": 20, "batch_size": 32, "seed": 3}
    train(parse({**run, "optim": {"learning_rate": 3e-3}}, RunConfig), folder)
    return folder


def study(weights: Path | str, **family: Any) -> StudyConfig:
    families = {
        "tuned": {"start": {"weights": str(weights)}, "learning_rates": [1e-3], **family},
        "resnet9": {"sizes": [MODEL], "learning_rates": [1e-2]},
    }
    return parse({**BASE, "study": LIMIT, "batch_size": 32, "families": families}, StudyConfig)


def test_runs_start_with_logistic_regression_on_frozen_features(weights: Path) -> None:
    config, found, left_out = open_starts(study(weights))
    start, run = found["tuned"], plan_study(study(weights)).first[0]
    assert config.families["tuned"].sizes == (MODEL,)
    assert not left_out
    assert (run.family, run.model, run.config.data.mean, run.config.data.std) == ("tuned", MODEL, (0.5,), (0.5,))
    assert run.config.start is not None
    assert run.config.start.head == "keep"
    assert run.config.start.freeze_batchnorm

    heldout = open_split(run.config.data, "heldout")
    objective = build_objective(run.config, open_split(run.config.data, "train")).eval()
    images, labels = heldout.read(np.arange(len(heldout)))
    with torch.no_grad():
        logits = objective.backbone(normalize(images, heldout, torch.device("cpu")))
    assert start.probe is not None
    assert F.cross_entropy(logits, labels).item() == pytest.approx(start.probe.loss, rel=1e-4)
    right = (logits.argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(start.probe.accuracy)
    assert right > 0.5  # where the weights themselves were at a few steps, and a new classifier at one in ten
    plain = build_objective(
        parse({**BASE, "model": {"name": MODEL}, "steps": 1, "start": {"weights": str(weights)}}, RunConfig),
        open_split(run.config.data, "train"),
    )
    trunk = {name: tensor for name, tensor in plain.backbone.state_dict().items() if not name.startswith("head")}
    ours = objective.backbone.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in trunk.items())


def test_runs_on_a_part_of_the_images_have_the_probe_of_that_part(weights: Path) -> None:
    _, found, _ = open_starts(study(weights))
    run = study(weights, sizes=[MODEL]).run_config("tuned", model=MODEL, steps=10, learning_rate=1e-3)
    whole = found["tuned"].of_run(run)
    part = found["tuned"].of_run(run.model_copy(update={"data": run.data.model_copy(update={"images": 100})}))
    assert whole.start is not None
    assert part.start is not None
    heads = [load_file(each.start.weights)["head.weight"] for each in (whole, part) if each.start]
    assert not torch.equal(*heads)
    assert whole.start.weights != part.start.weights


def test_fine_tuning_that_makes_the_weights_worse_ends_with_them(weights: Path, tmp_path: Path) -> None:
    plan = plan_study(study(weights))
    final = plan.catalogue.run("tuned", MODEL, 1.6e10, 10.0, role="final").config  # a rate that destroys them
    final = final.model_copy(update={"guards": final.guards.model_copy(update={"skip_nonfinite": 10**6})})
    result = train(final, tmp_path / "final")
    start = plan.catalogue.starts["tuned"].probe
    assert start is not None
    status = read_status(tmp_path / "final")
    assert status is not None
    assert status.best_step == 0
    assert result.heldout_loss == pytest.approx(start.loss, rel=1e-4)
    again = open_backbone(tmp_path / "final")
    assert (again.moments, again.model.num_classes) == (((0.5,), (0.5,)), 10)


def test_batchnorm_keeps_the_statistics_of_the_weights(weights: Path, tmp_path: Path) -> None:
    start = {"weights": str(weights), "freeze_batchnorm": True}
    run = {**BASE, "model": {"name": MODEL}, "steps": 3, "batch_size": 8, "start": start}
    train(parse(run, RunConfig), tmp_path / "frozen")
    train(parse({**run, "start": {"weights": str(weights)}}, RunConfig), tmp_path / "free")
    before, frozen, free = (
        load_file(f / "model.safetensors") for f in (weights, tmp_path / "frozen", tmp_path / "free")
    )
    names = [name for name in before if name.endswith("running_mean")]
    assert names
    assert all(torch.equal(before[name], frozen[name]) for name in names)
    assert not any(torch.equal(before[name], free[name]) for name in names)
    kernel = next(name for name in before if name.endswith("0.weight"))
    assert not torch.equal(before[kernel], frozen[kernel])


def test_of_many_weights_those_with_the_worst_features_are_left_out(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {**BASE, "model": {"name": MODEL}, "steps": 1, "batch_size": 32, "optim": {"learning_rate": 1e-9}}
    train(parse(run, RunConfig), tmp_path / "random")
    monkeypatch.setattr(starts, "TRIED", 1)
    families = {
        "random": {"start": {"weights": str(tmp_path / "random")}},
        "trained": {"start": {"weights": str(weights)}},
        "resnet9": {"sizes": [MODEL], "learning_rates": [1e-2]},
    }
    config = parse({**BASE, "study": LIMIT, "families": families}, StudyConfig)
    kept, found, left_out = open_starts(config)
    assert list(kept.families) == ["trained", "resnet9"]
    assert list(found) == ["trained"]
    assert left_out["random"].startswith("frozen features of 300 images give ")
    assert plan_study(config).ladder.left_out == left_out


@pytest.mark.parametrize(
    ("start", "family", "error", "said"),
    [
        ("nowhere", {}, CheckpointError, r"`families.tuned.start.weights`: nowhere: no such file"),
        ("timm:resnet9000", {}, CheckpointError, "timm has no model"),
        ("", {"sizes": ["vit_w8d1p8"]}, CheckpointError, r"weights of resnet9_w4, but `sizes` names vit_w8d1p8"),
    ],
)
def test_weights_that_cannot_be(weights: Path, start: str, family: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        plan_study(study(start or weights, **family))


def test_a_classifier_that_cannot_be_kept_is_refused(weights: Path, tmp_path: Path) -> None:
    keep = {"start": {"weights": str(weights), "head": "keep"}}
    _, found, _ = open_starts(study(weights, **keep))
    assert found["tuned"].probe is None
    config = study(weights, **keep)
    fewer = config.data.model_copy(update={"source": "fractals?classes=5&images=400", "heldout": 40})
    with pytest.raises(StudyError, match=r"a classifier of 10 classes, and fractals.* has 5"):
        open_starts(config.model_copy(update={"data": fewer}))

    masked = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
    run = {**BASE, "model": {"name": "vit_w8d1p8"}, "steps": 1, "objective": masked}
    train(parse(run, RunConfig), tmp_path / "masked")
    kept = {"start": {"weights": str(tmp_path / "masked"), "head": "keep"}}
    with pytest.raises(StudyError, match="have no classifier to keep"):
        open_starts(study(weights, **kept))
    with pytest.raises(ConfigError, match="has learnt without labels"):
        train(parse({**BASE, "model": {"name": "vit_w8d1p8"}, "steps": 1, **kept}, RunConfig), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_written_is_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    _, found, _ = open_starts(study(weights))
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StudyError, match="cannot write the weights that runs start from"):
        found["tuned"].of_run(study(weights, sizes=[MODEL]).run_config("tuned", model=MODEL, steps=9, learning_rate=1))


def test_weights_for_other_channels_are_refused(weights: Path, tmp_path: Path) -> None:
    for number in range(60):
        place = tmp_path / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(place / f"{number}.png")
    config = study(weights)
    colour = config.data.model_copy(update={"source": f"folder:{tmp_path / 'images'}", "heldout": 10})
    with pytest.raises(StudyError, match=r"trained on images of 1 channels, and those of folder:.* have 3"):
        plan_study(config.model_copy(update={"data": colour}))


@pytest.mark.parametrize(
    ("moments", "said"),
    [
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5]}, "`data.mean` has 3 numbers, but images of 1 channels"),
        ({"mean": [0.5]}, "`data.std` has 0 numbers"),
        ({"mean": [0.5], "std": [0.0]}, "a standard deviation is above 0"),
    ],
)
def test_moments_that_cannot_be(moments: dict[str, Any], said: str) -> None:
    data = parse({**BASE, "data": {**BASE["data"], **moments}, "model": {"name": MODEL}, "steps": 1}, RunConfig).data
    with pytest.raises(DataError, match=said):
        open_split(data, "train")
