"""The held-out loss at the best temperature."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from isoflop.config import RunConfig, parse
from isoflop.data import open_split
from isoflop.objectives import Supervised
from isoflop.train.device import Precision, normalize
from isoflop.train.evaluate import evaluate
from isoflop.train.loop import build_objective
from isoflop.train.ranks import Ranks


@pytest.mark.parametrize("sharpness", [0.7, 1.0, 2.5])
def test_it_is_the_lowest_over_temperatures(sharpness: float) -> None:
    """Against SciPy's minimum over one temperature."""
    run = {"model": {"name": "resnet9_w4"}, "steps": 1, "data": {"source": "digits", "image_size": 16, "heldout": 300}}
    config = parse({**run, "evaluation": {"calibrate": True}}, RunConfig)
    heldout = open_split(config.data, "heldout")
    images, labels = heldout.read(np.arange(len(heldout)))
    objective = build_objective(config, open_split(config.data, "train"))
    assert isinstance(objective, Supervised)
    with torch.no_grad():
        shift = torch.arange(32) % 10
        objective.backbone.head.weight.mul_(0).scatter_(0, shift[None], 1.0)  # one feature says one class
    cpu = Ranks(torch.device("cpu"))

    def found() -> float:
        told = evaluate(objective, heldout, batch_size=64, ranks=cpu, precision=Precision("float32"))
        assert set(told) == {"heldout_loss", "heldout_accuracy"}
        return told["heldout_loss"]

    objective.eval()
    with torch.no_grad():
        scale = sharpness / objective.backbone(normalize(images, heldout, torch.device("cpu"))).std()
        objective.backbone.head.weight.mul_(scale)
        logits = objective.backbone(normalize(images, heldout, torch.device("cpu")))
    best = minimize_scalar(
        lambda t: F.cross_entropy(logits / t, labels).item(), bounds=(0.5, 4.0), method="bounded"
    ).fun
    assert best <= found() + 1e-6
    assert found() == pytest.approx(best, rel=2e-3)
    kept, zeros = objective.backbone.head.weight.clone(), labels.numpy() == 0
    with torch.no_grad():
        objective.backbone.head.weight.mul_(0)[0] = 1e6  # always right about zeros, and sure of it
    told = evaluate(
        objective, heldout.subset(np.flatnonzero(zeros)[:9]), batch_size=64, ranks=cpu, precision=Precision("float32")
    )
    assert told == {"heldout_loss": 0.1, "heldout_accuracy": 1.0}
    objective.backbone.head.weight.data.copy_(kept)
    objective.calibrates = False
    assert found() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
