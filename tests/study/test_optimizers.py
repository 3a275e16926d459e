"""A study knows what every optimizer costs and where to begin with it."""

from typing import Any

import pytest

from isoflop.config import OptimizerConfig, StudyConfig, parse
from isoflop.study.planned import Catalogue
from isoflop.study.rungs import USUAL_RATE, rate_grid, usual_rate
from isoflop.train.optim.build import OPTIMIZERS


def catalogue(optim: dict[str, Any]) -> Catalogue:
    study = {"name": "s", "budgets": [1e9, 2e9, 3e9], "target_budget": 1e10}
    data = {"source": "fractals?classes=10&images=1000", "heldout": 16}
    return Catalogue(parse({"study": study, "data": data, "optim": optim, "families": {"vit": {}}}, StudyConfig))


def test_every_optimizer_has_a_usual_rate() -> None:
    assert set(USUAL_RATE) == set(OPTIMIZERS)
    assert OptimizerConfig().name in USUAL_RATE


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_grid_of_rates_can_be_laid_for_every_optimizer(name: str) -> None:
    found = catalogue({"name": name})
    low, centre, high = rate_grid(found.config, found, "vit", "vit_w16d2p8")
    assert low < centre < high


def test_sharpness_aware_runs_get_half_of_the_steps() -> None:
    plain, sam = catalogue({}), catalogue({"sam": 0.05})
    assert sam.flops_per_image("vit", "vit_w16d2p8") == 2 * plain.flops_per_image("vit", "vit_w16d2p8")
    assert sam.run("vit", "vit_w16d2p8", 1e9, 1e-3).flops_per_image == sam.flops_per_image("vit", "vit_w16d2p8")
    assert sam.steps("vit", "vit_w16d2p8", 3e9) == pytest.approx(plain.steps("vit", "vit_w16d2p8", 3e9) / 2, abs=1)


@pytest.mark.parametrize(("name", "power"), [("sgd", 1.0), ("adamw", 0.5)])
def test_the_usual_rate_follows_the_batch_size(name: str, power: float) -> None:
    """Linear for SGD (arXiv 1706.02677), by the root for AdamW (arXiv 2205.10287)."""
    small, large = (usual_rate(name, 1e6, batch) for batch in (16, 128))
    assert large / small == pytest.approx(8**power)
    found = catalogue({"name": name})
    batch = found.of(found.config.model_copy(update={"batch_size": 16 * found.batch_size}))
    centres = [rate_grid(c.config, c, "vit", "vit_w16d2p8")[1] for c in (found, batch)]
    assert centres[1] / centres[0] == pytest.approx(16**power, rel=0.4)  # of one digit
