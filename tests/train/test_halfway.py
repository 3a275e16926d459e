"""A run that is hopeless halfway is stopped there, whatever happened on the way, and can go on later."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.config import RunConfig
from isoflop.runs.directory import read_status
from isoflop.train import train
from isoflop.train.checkpoints import latest_checkpoint
from isoflop.train.halfway import Limit, halfway, loss_at, note
from tests.promises.chaos import run_config

NEVER = Limit(step=30, loss=100.0, offset=0.0, slope=1.0, aim=1.0)
ALWAYS = replace(NEVER, loss=0.1)


def brief(**changes: Any) -> RunConfig:
    return run_config(**{"steps": 60, "checkpoint": {"every_seconds": 0.5}, "evaluation": {}, **changes})


def test_the_loss_at_a_step_is_the_mean_of_the_second_half_before_it_whatever_the_length() -> None:
    losses = 3.0 * np.arange(1, 1001) ** -0.3
    curve: list[list[float]] = []
    for step, loss in enumerate(losses, 1):
        note(curve, step, float(loss))
        if step == 500:
            at = loss_at(curve, 500)
    assert loss_at(curve, 500) == at == pytest.approx(losses[250:500].mean(), rel=0.02)
    assert len(curve) < 80
    assert math.isnan(loss_at([], 500))


def test_a_hopeless_run_stops_at_its_mark_says_why_and_goes_on_without_a_limit(tmp_path: Path) -> None:
    config = brief()
    whole = train(config, tmp_path / "whole", limit=NEVER)
    assert whole.state == "done"
    result = train(config, tmp_path / "run", limit=ALWAYS)
    status = read_status(tmp_path / "run")
    assert (result.state, result.step) == ("stopped", 30)
    assert status.halfway_loss == read_status(tmp_path / "whole").halfway_loss
    assert status.expected_loss == pytest.approx(status.halfway_loss)
    assert status.error.startswith("at step 30 of 60: its loss of")
    assert train(config, tmp_path / "run", limit=ALWAYS).state == "stopped"
    assert train(config, tmp_path / "run").heldout_loss == whole.heldout_loss


def test_a_branch_looks_back_on_the_curve_of_its_trunk(tmp_path: Path) -> None:
    config, trunk = brief(), tmp_path / "trunk"
    train(brief(steps=40), tmp_path / "short", trunk=trunk)
    assert latest_checkpoint(trunk, at_most=60) is not None
    result = train(config, tmp_path / "branch", trunk=trunk, limit=NEVER)
    alone = train(config, tmp_path / "alone")
    assert result.heldout_loss == alone.heldout_loss
    told = [read_status(tmp_path / name).halfway_loss for name in ("branch", "alone")]
    assert told[0] == told[1]


def test_a_run_that_begins_beyond_its_mark_is_judged_by_what_it_was_there(tmp_path: Path) -> None:
    config, trunk = brief(steps=50), tmp_path / "trunk"
    train(brief(steps=40), tmp_path / "short", trunk=trunk)  # its trunk ends at step 28
    limit = replace(ALWAYS, step=halfway(50))
    late, early = (train(config, tmp_path / name, trunk=t, limit=limit) for name, t in (("b", trunk), ("a", None)))
    assert (late.state, late.step) == ("stopped", 28)
    assert (early.state, early.step) == ("stopped", 25)
    assert read_status(tmp_path / "b").halfway_loss == read_status(tmp_path / "a").halfway_loss
