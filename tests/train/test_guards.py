"""Losses that leap or are not finite: no update, or back and around them, alike on all ranks; else diverged."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.config import RunConfig
from isoflop.data import batches, open_split
from isoflop.runs.directory import read_status
from isoflop.runs.journal import attempts, data_steps
from isoflop.train import attempt, loop, read_journal, train
from isoflop.train.checkpoints import pack
from isoflop.train.guards import robust_z
from isoflop.train.ranks import Ranks
from isoflop.train.record import MEASURED
from isoflop.train.step import Outcome, Step, read_outcomes
from tests.promises.chaos import EVERY_STEP, Blow, kill_after, poisoned, run_config, train_whole
from tests.promises.same import check_samples

SHARE = 0.0015  # of the samples are poisoned: with 24 in a batch, about one step in thirty


def guarded(**guards: Any) -> RunConfig:
    return run_config(
        steps=80,
        log_every=5,
        optim={"learning_rate": 0.002},
        evaluation={"every": 40},
        checkpoint=EVERY_STEP,
        guards={"window": 10, **guards},
    )


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Has training in this process meet samples that multiply the loss of their batch."""
    build = loop.build_objective

    def begin(factor: float) -> None:
        monkeypatch.setattr(loop, "build_objective", lambda *a: poisoned(build(*a), SHARE, factor))

    return begin


def test_a_leap_is_told_by_median_and_deviation() -> None:
    before = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1.01, 0.99, 50.0, 1.0]
    spread = 1.4826 * 0.02
    assert robust_z(1.0 + 3 * spread, before) == pytest.approx(3.0, rel=0.01)  # the outlier of 50 does not count
    assert robust_z(0.5, before) < 0
    assert robust_z(100.0, before[:9]) == 0.0


def test_steps_that_are_not_finite_change_no_weight_and_are_counted(tmp_path: Path, poison: Any) -> None:
    poison(math.nan)
    config = guarded(skip_nonfinite=50)
    result = train(config, tmp_path / "run")
    last = read_journal(tmp_path / "run")[-1]
    assert result.state == "done"
    assert 0 < last["nonfinite"] < 20
    assert all(math.isfinite(row["loss"]) for row in read_journal(tmp_path / "run"))
    check_samples(config, tmp_path / "run")  # such samples count as fed


@pytest.mark.parametrize("what", ["activations", "gradient"])
def test_neither_weights_nor_statistics_of_batches_take_in_what_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """One step goes wrong in the stem: from the forward pass on, or in the gradient alone, with a finite loss."""
    build, calls = loop.build_objective, []

    def at_the_fifth(value: torch.Tensor) -> torch.Tensor:
        calls.append(value)
        return value * (math.nan if len(calls) == 5 else 1.0)

    def hooked(*a: Any) -> Any:
        objective = build(*a)
        stem = objective.backbone.model.conv1[0]
        if what == "activations":
            stem.register_forward_hook(lambda m, i, out: at_the_fifth(out) if m.training else out)
        else:
            stem.weight.register_hook(at_the_fifth)
        return objective

    monkeypatch.setattr(loop, "build_objective", hooked)
    model, guards = {"name": "timm:resnet10t"}, {"skip_nonfinite": 1}
    config = run_config(model=model, steps=10, batch_size=8, log_every=1, guards=guards)
    result = train(config, tmp_path / "run")
    assert len(calls) == 10
    assert result.state == "done"
    assert math.isfinite(result.heldout_loss)
    assert read_journal(tmp_path / "run")[-1]["nonfinite"] == 1
    assert all(bool(t.isfinite().all()) for t in load_file(tmp_path / "run/model.safetensors").values())


def test_without_leave_the_first_such_step_ends_the_run_with_evidence(tmp_path: Path, poison: Any) -> None:
    poison(math.nan)
    result = train(guarded(), tmp_path / "run")
    assert result.state == "diverged"
    evidence = json.loads((tmp_path / "run/diverged.json").read_text())
    assert evidence["step"] == result.step == read_status(tmp_path / "run").step
    assert len(evidence["samples"]) == 24


def test_a_spike_is_rolled_back_and_its_samples_are_passed_over(tmp_path: Path, poison: Any) -> None:
    poison(30.0)
    config = guarded(spike=20.0, rollbacks=20)
    assert train(config, tmp_path / "run").state == "done"
    rollbacks = rollbacks_of(tmp_path / "run")
    assert len(rollbacks) > 1
    skipped = [[row["step"], row["from"] - row["step"]] for row in rollbacks]
    check_samples(config, tmp_path / "run", skipped)
    assert all(row["loss"] < 4 for row in read_journal(tmp_path / "run") if row["step"] > 15)  # from when it judges
    assert len(set(data_steps(config.steps, skipped))) == config.steps


def test_too_many_spikes_end_the_run_as_diverged(tmp_path: Path, poison: Any) -> None:
    poison(30.0)
    result = train(guarded(spike=20.0, rollbacks=1), tmp_path / "run")
    assert result.state == "diverged"
    assert "has a spike" in result.error
    assert "after 1 rollbacks" in result.error
    assert len(json.loads((tmp_path / "run/diverged.json").read_text())["skipped"]) == 1


@pytest.mark.long
def test_ranks_that_are_killed_go_around_the_same_spikes(tmp_path: Path) -> None:
    config = guarded(spike=20.0, rollbacks=20)
    calm, fire = tmp_path / "calm", tmp_path / "fire"
    environment = {"POISON": f"{SHARE} 30.0"}
    train_whole(config, calm, world=2, **environment)
    alone = tmp_path / "alone"
    train_whole(config, alone, **environment)
    kill_after(config, fire, 2, Blow(35), **environment)
    train_whole(config, fire, world=2, **environment)
    assert (calm / "model.safetensors").read_bytes() == (fire / "model.safetensors").read_bytes()
    skipped = [[row["step"], row["from"] - row["step"]] for row in rollbacks_of(calm)]
    check_samples(config, fire, skipped)
    check_samples(config, alone, skipped)


def rollbacks_of(directory: Path) -> list[dict[str, Any]]:
    return [row for rows in attempts(directory) for row in rows if row["kind"] == "rollback"]


class Reads(TorchDispatchMode):
    """Counts what waits for the device: numbers that are read from it, and copies from it that are not asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.count += name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("more", [{}, {"agc": 0.01, "average": 0.99}, {"name": "sgd", "momentum": 0.9, "clip": 1.0}])
def test_a_step_does_not_wait_for_the_device_between_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """The first update may, since it makes the optimizer's state; then whoever reads the outcomes."""
    reads: list[int] = []
    whole = Step.__call__

    def counted(*a: Any, **b: Any) -> Outcome:
        with Reads() as mode:
            outcome = whole(*a, **b)
        reads.append(mode.count)
        return outcome

    monkeypatch.setattr(Step, "__call__", counted)
    monkeypatch.setattr(attempt, "read_outcomes", lambda made: reads.append(-len(made)) or read_outcomes(made))
    optim = {"learning_rate": 1e-3, **more}
    data = {"source": "fractals?classes=10", "heldout": 16, "mixup": 0.2, "cutmix": 1.0}
    plain: dict[str, Any] = {"schedule": {}, "checkpoint": {}}
    train(run_config(steps=8, batch_size=9, log_every=4, optim=optim, data=data, **plain), tmp_path / "run")
    assert reads == [1, 0, 0, 0, -4, 0, 0, 0, 0, -4]


@pytest.mark.parametrize(
    "optim", [{}, {"name": "sgd", "momentum": 0.9}, {"average": 0.9, "clip": 0.5}, {"name": "lamb"}]
)
@pytest.mark.parametrize("at", [1, 5])
def test_a_skipped_step_leaves_everything_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, optim: dict[str, Any], at: int
) -> None:
    """Weights, statistics of BatchNorm, the optimizer's state and the average: bit for bit."""
    model = "timm:resnet10t" if optim.get("name") == "sgd" else "resnet_w8d8p2"  # which have statistics of batches
    changes = {"model": {"name": model}, "schedule": {}, "optim": {"learning_rate": 1e-2, **optim}}
    config = run_config(steps=6, batch_size=4, **changes)
    source = open_split(config.data, "train")

    def trained(skipped: int | None) -> dict[str, torch.Tensor]:
        step = Step(loop.build_objective(config, source), source, config, Ranks(torch.device("cpu")))
        fed = list(batches(source, seed=0, batch_size=4, start_step=0, stop_step=6))
        for number, batch in enumerate(fed):
            if number + 1 == at:
                if skipped is None:
                    continue
                hook = step.parameters[0].register_hook(lambda gradient: gradient * math.nan)
            outcome = step(batch, 1e-2)
            assert outcome.updated == (number + 1 != at)
            if number + 1 == at:
                hook.remove()
        return pack(step.objective, step.optimizer)

    plain, skipping = trained(None), trained(at)
    assert plain.keys() == skipping.keys()
    assert all(torch.equal(plain[name], skipping[name]) for name in plain)


def test_a_run_diverges_at_the_same_step_however_late_its_outcomes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: Any
) -> None:
    poison(math.nan)
    found = []
    for most in (1, 64):
        monkeypatch.setattr(attempt, "MOST_UNREAD", most)
        config = run_config(steps=80, log_every=70, optim={"learning_rate": 0.002}, guards={"skip_nonfinite": 1})
        result = train(config, tmp_path / f"{most}")
        rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in read_journal(tmp_path / f"{most}")]
        found.append((result.state, result.step, rows, (tmp_path / f"{most}/diverged.json").read_text()))
    assert found[0] == found[1]
    assert found[0][0] == "diverged"
