"""Schedules do what their papers say, and trunks do not know how long the run will be."""

import math

import pytest

from isoflop.config import ScheduleConfig
from isoflop.train.optim.build import rate_factor, trunk_steps


def schedule(**values: object) -> ScheduleConfig:
    return ScheduleConfig.model_validate(values)


def test_warm_up_rises_linearly_to_the_peak_and_loses_no_step() -> None:
    factors = [rate_factor(schedule(name="constant", warmup=10, cooldown=0.0), k, 100) for k in range(12)]
    assert factors[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert factors[10:] == [1.0, 1.0]


def test_cooldown_falls_linearly_and_never_trains_at_zero() -> None:
    factors = [rate_factor(schedule(name="constant", cooldown=0.2), k, 100) for k in range(100)]
    assert factors[:81] == [1.0] * 81
    assert factors[80:] == pytest.approx([(100 - k) / 20 for k in range(80, 100)])
    assert factors[-1] > 0


def test_cosine_agrees_with_torch() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert rate_factor(schedule(name="cosine"), step, 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_floor_with_warm_up_and_hold_agrees_with_timm() -> None:
    """timm's cosine with `warmup_prefix`, a warm-up of 5 from 1e-6, a floor of 1e-5, then ten steps of cooldown."""
    import torch
    from timm.scheduler import CosineLRScheduler

    peak = 1e-3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    timing = {"t_initial": 45, "lr_min": 1e-5, "warmup_t": 5, "warmup_lr_init": 1e-6, "warmup_prefix": True}
    theirs = CosineLRScheduler(optimizer, **timing)
    config = schedule(name="cosine", warmup=5, warmup_from=1e-3, floor=1e-2, hold=10 / 60)
    rates = [peak * rate_factor(config, k, 60) for k in range(60)]
    for step in range(60):
        told = theirs._get_lr(step + (step < 5))[0]  # ours counts from 1 while it rises, so that no step is lost
        assert rates[step] == pytest.approx(told if step < 50 else 1e-5, rel=1e-9), step


def test_poly_agrees_with_torch() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
    for step in range(50):
        assert rate_factor(schedule(name="poly"), step, 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_reciprocal_root_follows_the_formula_of_scaling_vit() -> None:
    config = schedule(name="rsqrt", warmup=10_000, timescale=10_000, cooldown=0.0)
    assert rate_factor(config, 10_000, 10**6) == pytest.approx(1.0)
    assert rate_factor(config, 20_000, 10**6) == pytest.approx(1 / math.sqrt(2))
    assert rate_factor(config, 40_000, 10**6) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["constant", "rsqrt"])
def test_runs_of_every_length_share_the_trunk_exactly(name: str) -> None:
    config = schedule(name=name, warmup=7, cooldown=0.25, timescale=30)
    shared = trunk_steps(config, 80)
    assert shared == 60
    assert [rate_factor(config, k, 80) for k in range(shared)] == [rate_factor(config, k, 400) for k in range(shared)]


def test_a_cosine_has_no_trunk() -> None:
    assert trunk_steps(schedule(name="cosine"), 100) == 0


def test_drops_to_a_tenth_are_those_of_bit() -> None:
    bit = schedule(name="steps", warmup=100, drops=(0.4, 0.6, 0.8))  # its shortest: 500 steps, at 200, 300 and 400
    rates = [rate_factor(bit, step, 500) for step in (0, 99, 199, 200, 299, 300, 399, 400, 499)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert trunk_steps(bit, 500) == 0
