"""LeJEPA against its formula, and in whole runs of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.integrate import quad

from isoflop.config import LeJEPAConfig, RunConfig, parse
from isoflop.errors import ConfigError
from isoflop.models import cost, create_model
from isoflop.objectives import LeJEPA, make_objective, objective_cost
from isoflop.objectives.lejepa import KNOTS, LAST_KNOT, SLICES, directions, make_views, sigreg
from isoflop.train import read_journal, train
from isoflop.train.step import sample_uniforms
from tests.promises.chaos import run_config, train_whole, when_asked

LIGHT = {"name": "lejepa", "views": 2, "projector_width": 24, "projection": 8}
NONE = torch.zeros(6, dtype=torch.int64)
PIXELS = torch.tensor(0.0), torch.tensor(1.0)  # mean and deviation


def config(name: str = "vit_w8d1p8", **changes: Any) -> RunConfig:
    values: dict[str, Any] = {"model": {"name": name}, "objective": LIGHT, "steps": 20, "evaluation": {"every": 10}}
    return run_config(**{**values, "optim": {"learning_rate": 0.003}, **changes})


def lejepa(name: str = "vit_w8d1p8", **changes: Any) -> LeJEPA:
    backbone = create_model(name, image_size=32, num_classes=7)
    moments = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    made = make_objective(parse({**LIGHT, **changes}, LeJEPAConfig), backbone, moments=moments)
    assert isinstance(made, LeJEPA)
    return made


def uniforms(stream: str, count: int) -> torch.Tensor:
    return sample_uniforms(0, 0, np.arange(6), torch.device("cpu"))(stream, count)


def by_hand(rows: np.ndarray, along: np.ndarray) -> float:
    """Algorithm 1 of the paper for one view, in float64: the whole range, complex numbers."""
    t = np.linspace(-LAST_KNOT, LAST_KNOT, 2 * KNOTS - 1)
    gaussian = np.exp(-(t**2) / 2)
    empirical = np.exp(1j * (rows @ along)[..., None] * t).mean(axis=0)
    integrand = np.abs(empirical - gaussian) ** 2 * gaussian
    return float(len(rows) * np.mean(np.sum((integrand[:, 1:] + integrand[:, :-1]) / 2, axis=1) * (t[1] - t[0])))


def test_sigreg_is_the_statistic_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    projections = 0.3 + 1.5 * rng.standard_normal((50, 3, 8))
    along = directions(8, 5, torch.device("cpu"))
    assert along.shape == (8, SLICES)
    assert along.norm(dim=0) == pytest.approx(torch.ones(SLICES))
    expected = np.mean([by_hand(projections[:, view], along.numpy()) for view in range(3)])
    assert sigreg(torch.from_numpy(projections).float(), along).item() == pytest.approx(expected, rel=1e-5)


def test_sigreg_of_a_gaussian_is_what_theory_expects() -> None:
    """E|φₙ - φ|² = (1 - φ²)/n, so that the statistic has the mean ∫(1 - φ²)·φ dt, whatever n."""
    expected = quad(lambda t: (1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), -LAST_KNOT, LAST_KNOT)[0]
    along = directions(16, 0, torch.device("cpu"))
    for n in (64, 512):
        found = [sigreg(torch.randn(n, 16, generator=torch.Generator().manual_seed(k)), along) for k in range(8)]
        assert torch.stack(found).mean().item() == pytest.approx(expected, rel=0.1)
    collapsed = sigreg(torch.zeros(64, 16), along).item()
    assert collapsed > 10 * expected


def test_the_loss_weighs_both_terms_and_the_views_meet_in_their_mean() -> None:
    objective = lejepa(sigreg_weight=0.25, views=3)
    images = torch.randn(6, 3, 32, 32)
    objective.eval()
    found = objective.evaluate(images, NONE, uniforms)
    u = uniforms("views", 30).view(6, 3, 10)
    views = make_views(images, u, 0.08, 0.8, *(torch.tensor(x).view(3, 1, 1) for x in objective.moments or ()))
    with torch.no_grad():
        projections = objective.projector(objective.backbone.features(views.flatten(0, 1))).view(6, 3, -1).double()
    distance = ((projections - projections.mean(dim=1, keepdim=True)) ** 2).mean().item()
    assert found["invariance"].item() / 6 == pytest.approx(distance, rel=1e-5)
    assert found["loss"].item() == pytest.approx(0.25 * found["sigreg"].item() + 0.75 * found["invariance"].item())
    assert objective.evaluate(images, NONE, uniforms) == found  # along the same directions


def test_directions_change_with_the_step_and_with_nothing_else() -> None:
    objective, images = lejepa(), torch.randn(6, 3, 32, 32)
    losses = {}
    for name, seed, drawn in (("first", 1, 0), ("same", 1, 1), ("other", 2, 0)):
        torch.manual_seed(seed)
        torch.rand(drawn)  # of other layers
        losses[name] = objective(images, NONE, uniforms).item()
    assert losses["first"] == losses["same"] != losses["other"]


def test_views_are_crops_of_their_image_with_other_colours() -> None:
    ramp = torch.linspace(0, 1, 16)
    images = torch.stack([ramp.expand(16, 16), ramp.expand(16, 16).T, torch.full((16, 16), 0.5)])[None]
    whole = torch.tensor([[[0.0, 0.5, 0.5, 0.5, 0.9, 1, 0, 0, 0, 1]]]) + torch.tensor([1.0] + [0.0] * 9)
    assert torch.allclose(make_views(images, whole, 0.08, 0.8, *PIXELS)[:, 0], images, atol=1e-6)
    flipped = whole.clone()
    flipped[..., 4] = 0.1
    assert torch.allclose(make_views(images, flipped, 0.08, 0.8, *PIXELS)[:, 0], images.flip(3), atol=1e-6)
    corner = torch.tensor([[[0.0, 0.5, 0.0, 1.0, 0.9, 1, 0, 0, 0, 1]]])  # a quarter of the image: left, below
    quarter = make_views(images, corner, 0.25, 0.8, *PIXELS)[0, 0]
    assert quarter[0].mean().item() == pytest.approx(ramp[:8].mean().item(), abs=0.01)
    assert quarter[1].mean().item() == pytest.approx(ramp[8:].mean().item(), abs=0.01)
    # Brightness 1.4, then contrast and saturation as they are; without a jitter, nothing.
    bright = torch.cat([whole[..., :5], torch.tensor([[[0.0, 0.75, 0.5, 0.5, 0.9]]])], dim=2)
    assert torch.allclose(make_views(images, bright, 0.08, 0.8, *PIXELS)[0], (1.4 * images).clamp(0, 1), atol=1e-6)
    assert torch.allclose(make_views(images, bright, 0.08, 0.0, *PIXELS)[0], images, atol=1e-6)
    grey = bright.clone()
    grey[..., 6], grey[..., 9] = 0.5, 0.1
    made = make_views((images - 0.3) / 0.2, grey, 0.08, 0.8, torch.tensor(0.3), torch.tensor(0.2))[0, 0] * 0.2 + 0.3
    assert torch.allclose(made[0], made[2], atol=1e-6)
    u = torch.rand(1, 4, 10)
    exact = make_views(images, u, 0.08, 0.8, *PIXELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make_views(images, u, 0.08, 0.8, *PIXELS), exact)
    assert make_views(images[:, :2], u, 0.1, 0.8, *PIXELS).shape == (1, 4, 2, 16, 16)


@pytest.mark.parametrize(
    "name",
    ["vit_w8d1p8", "deit_ti16_distilled", "poolformer_w8d2p4", "nfnet_w8d1", "resnet9_w4", "timm:resnet10t"],
)
def test_every_parameter_that_is_trained_has_a_gradient(name: str) -> None:
    objective = lejepa(name)
    torch.manual_seed(0)
    objective(torch.randn(6, 3, 32, 32), NONE, uniforms).backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert not any(name.startswith(("backbone.head", "backbone.model.fc")) for name in trained)


def test_a_step_costs_views_and_projector() -> None:
    counted = objective_cost(parse({**LIGHT, "views": 3}, LeJEPAConfig), "vit_w8d1p8", image_size=32, num_classes=7)
    backbone = cost("vit_w8d1p8", image_size=32, num_classes=7)
    width = create_model("vit_w8d1p8").num_features
    projector = width * 24 + 24 * 24 + 24 * 8
    assert counted.macs == 3 * (backbone.macs - 7 * width + projector + 8 * SLICES)
    assert counted.parameters == backbone.parameters - 7 * (width + 1) + projector + 24 + 24 + 8 + 4 * 24


def test_a_run_learns_and_ends_with_the_same_bits_when_it_is_interrupted(tmp_path: Path) -> None:
    calm = train(config(), tmp_path / "calm")
    first, *_, last = (row for row in read_journal(tmp_path / "calm") if "heldout_loss" in row)
    assert last["heldout_loss"] < first["heldout_loss"]
    assert {"heldout_invariance", "heldout_sigreg", "probe_accuracy", "rankme"} <= last.keys()
    assert train(config(), tmp_path / "run", stop=when_asked(11)).state == "preempted"
    again = train(config(), tmp_path / "run")
    assert vars(again) | {"seconds": 0} == vars(calm) | {"seconds": 0}, "with what the probe found"
    for name in ("model.safetensors", "objective.safetensors"):
        whole, resumed = load_file(tmp_path / "calm" / name), load_file(tmp_path / "run" / name)
        assert all(torch.equal(whole[part], resumed[part]) for part in whole), name
    assert all(part.startswith("projector.") for part in load_file(tmp_path / "run" / "objective.safetensors"))


def test_on_several_processes_the_batch_is_compared_as_a_whole(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "steps": 8,
        "log_every": 1,
        "batch_size": 13,
        "model": {"name": "vit_w8d2p8", "drop_path": 0.2},
    }
    train_whole(config(**changes), tmp_path / "alone")
    train_whole(config(**changes, parallel={"sharding": "full"}), tmp_path / "both", world=2)
    alone, both = (read_journal(tmp_path / name) for name in ("alone", "both"))
    assert [row["loss"] for row in both] == pytest.approx([row["loss"] for row in alone], abs=2e-6)
    norms = [row["gradient_norm"] for row in alone]
    assert [row["gradient_norm"] for row in both] == pytest.approx(norms, rel=1e-4)
    assert both[-1]["heldout_loss"] == pytest.approx(alone[-1]["heldout_loss"], abs=2e-5)
    assert both[-1]["rankme"] == pytest.approx(alone[-1]["rankme"], rel=1e-3)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"`batch_size` = 1, and lejepa compares the images of a batch: use 2 or more"
    ):
        config(batch_size=1)
    with pytest.raises(ConfigError, match=r"`lejepa` compares the images of a batch: train without `parallel.device_b"):
        train(config(parallel={"device_batch_size": 4}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
