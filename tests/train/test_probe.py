"""The probe of runs without labels: the same images and the same ridge regression as in a transfer, and RankMe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isoflop.config import MaskedConfig
from isoflop.data import open_source
from isoflop.models import create_model
from isoflop.objectives import make_objective
from isoflop.train.device import Precision, normalize
from isoflop.train.probe import IMAGES, probe, rankme, ridge_scores
from isoflop.train.ranks import Ranks


def test_rankme_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.linalg.qr(torch.randn(64, 8, generator=generator))[0]
    assert rankme(wide) == pytest.approx(8, rel=1e-4)
    for left in ([1.0] + [0.0] * 7, [0.0] * 8):
        assert rankme(wide * torch.tensor(left)) == pytest.approx(1, rel=1e-3)
    values = np.array([4.0, 2.0, 1.0, 1.0])
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert rankme(wide[:, :4] * torch.tensor(values)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [300, 3000])
def test_the_probe_is_ridge_regression_on_the_images_that_a_run_sees_first(count: int) -> None:
    uri = f"fractals?classes=10&images={count}"
    source, heldout = (open_source(uri, split=split, image_size=16) for split in ("train", "heldout"))
    backbone = create_model("vit_w8d1p8", image_size=16, num_classes=10, in_channels=source.channels)
    objective = make_objective(MaskedConfig(name="masked", decoder_depth=1, decoder_width=8, decoder_heads=1), backbone)
    ranks = Ranks(torch.device("cpu"))
    found = [
        probe(objective.train(), source, heldout, seed=3, batch_size=size, ranks=ranks, precision=Precision())
        for size in (64, 5000)
    ]
    assert objective.training
    assert found[0] == pytest.approx(found[1])
    features, labels = [], []
    for of in (source, heldout):
        indices = of.order.locate(np.arange(min(IMAGES, len(of))), 3)[1]
        images, truth = of.read(indices)
        with torch.no_grad():
            features.append(backbone.features(normalize(images, of, ranks.device)))
        labels.append(truth)
    guessed = ridge_scores(features[0], labels[0], features[1], 10).argmax(dim=1)
    assert found[0]["probe_accuracy"] == pytest.approx((guessed == labels[1]).double().mean().item(), abs=2e-3)
    assert found[0]["rankme"] == pytest.approx(rankme(features[0]), rel=1e-4)
