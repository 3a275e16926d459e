"""Runs that are trained as one: the runs that they would be alone, whatever happens to their neighbours."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from isoflop.config import RunConfig
from isoflop.train import RunResult, train
from isoflop.train.checkpoints import checkpoint_path
from isoflop.train.schedules import trunk_steps
from isoflop.train.stacked import Stack
from tests.promises.chaos import run_config
from tests.promises.same import check_close, check_same


def sweep(model: str, **changes: Any) -> list[RunConfig]:
    """Three runs that differ in learning rate and seed."""
    optim = {"learning_rate": 0.01, **changes.pop("optim", {})}
    quiet = {"log_every": 3, "evaluation": {"every": None}, "checkpoint": {"every_seconds": 1e6}}
    first = run_config(model={"name": model}, steps=12, batch_size=8, optim=optim, **{**quiet, **changes})
    rates, seeds = (0.01, 0.02, 0.02), (3, 3, 4)
    return [
        first.model_copy(update={"seed": seed, "optim": first.optim.model_copy(update={"learning_rate": rate})})
        for rate, seed in zip(rates, seeds, strict=True)
    ]


def together(
    runs: Mapping[int, RunConfig], folder: Path, stop: Callable[[int], Callable[[], bool]] | None = None, **more: Any
) -> dict[int, RunResult]:
    """Trains runs by place in a stack of three; `stop` makes the run at a place ask whether to stop."""
    stack = Stack(3, runs)

    def one(place: int) -> RunResult:
        asks = stop(place) if stop else lambda: False
        with stack.seat(place) as seat:
            return train(runs[place], folder / str(place), seat=seat, stop=asks, **more)

    with ThreadPoolExecutor(len(runs)) as pool:
        return dict(zip(runs, pool.map(one, runs), strict=True))


@pytest.mark.parametrize(
    ("model", "optim"),
    [
        ("vit_w8d2p8", {"name": "sgd", "momentum": 0.9, "average": 0.9}),
        ("poolformer_w6d2p8", {"name": "sgd", "momentum": 0.9, "clip": 1.0}),
        ("nfnet_w6d2", {"name": "sgd", "momentum": 0.9, "agc": 0.01, "average": 0.9}),
    ],
)
def test_stacked_runs_are_the_separate_runs_within_rounding(tmp_path: Path, model: str, optim: dict[str, Any]) -> None:
    runs = sweep(model, optim=optim)
    ends = together(dict(enumerate(runs)), tmp_path / "stacked")
    for place, config in enumerate(runs):
        alone, stacked = tmp_path / "alone" / str(place), tmp_path / "stacked" / str(place)
        expected = train(config, alone)
        assert ends[place].state == "done"
        assert ends[place].heldout_loss == pytest.approx(expected.heldout_loss, abs=2e-5)
        check_close(config, alone, stacked)
        weights = load_file(stacked / "model.safetensors")
        for name, tensor in load_file(alone / "model.safetensors").items():
            np.testing.assert_allclose(weights[name], tensor, rtol=1e-3, atol=2e-5, err_msg=name)


def test_a_stack_that_was_stopped_goes_on_bit_for_bit_also_without_those_that_had_ended(tmp_path: Path) -> None:
    runs = dict(enumerate(sweep("poolformer_w6d2p8")))
    together(runs, tmp_path / "undisturbed")

    def stop(place: int) -> Callable[[], bool]:
        asked = iter(range(100))
        return lambda: place > 0 and next(asked) == 5

    ends = together(runs, tmp_path / "stopped", stop)
    assert [end.state for end in ends.values()] == ["done", "preempted", "preempted"]
    ends = together({place: runs[place] for place in (1, 2)}, tmp_path / "stopped")
    assert {end.state for end in ends.values()} == {"done"}
    for place, config in runs.items():
        check_same(config, tmp_path / "undisturbed" / str(place), tmp_path / "stopped" / str(place))


def test_a_stacked_run_leaves_its_trunk_and_a_neighbour_that_fails_stops_nobody(tmp_path: Path) -> None:
    runs = dict(enumerate(sweep("vit_w4d1p8")))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "strange").touch()  # not a folder that a run may take

    stack, ends = Stack(3, runs), {}

    def one(place: int) -> None:
        with stack.seat(place) as seat:
            ends[place] = train(runs[place], tmp_path / str(place), seat=seat, trunk=tmp_path / f"trunk{place}").state

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(one, place) for place in runs]
    assert [future.exception() is None for future in futures] == [True, False, True]
    assert ends == {0: "done", 2: "done"}
    assert checkpoint_path(tmp_path / "trunk0", trunk_steps(runs[0].schedule, runs[0].steps)).exists()
