"""Boards show what the journal says, and none of them can stop a run."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from isoflop.config import config_hash
from isoflop.train import read_journal, train
from isoflop.train.boards import named_values
from tests.promises.chaos import run_config


class Recorder:
    """Stands in for a library; everything called on it is noted, and `broken` names what raises."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if name == self.broken:
                raise ConnectionError(f"no server for {name}")
            return [] if name == "search_runs" else self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def plant(monkeypatch: pytest.MonkeyPatch, name: str, recorder: Recorder) -> None:
    module = types.ModuleType(name)
    module.__getattr__ = recorder.__getattr__  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, name, module)


def test_weights_and_biases_gets_every_row_under_the_id_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Recorder()
    plant(monkeypatch, "wandb", wandb)
    config = run_config(steps=20, wandb=True)
    train(config, tmp_path / "run")
    ((_, started),) = wandb.named("init")
    assert (started["id"], started["resume"], started["config"]["steps"]) == (config_hash(config), "allow", 20)
    rows = read_journal(tmp_path / "run")
    assert [(args[0]["train/loss"], kwargs["step"]) for args, kwargs in wandb.named("log")] == [
        (row["loss"], row["step"]) for row in rows
    ]
    assert wandb.named("finish")


def test_mlflow_gets_every_row_and_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = Recorder()
    plant(monkeypatch, "mlflow", mlflow)
    config = run_config(steps=20, mlflow=True)
    train(config, tmp_path / "run")
    ((_, started),) = mlflow.named("start_run")
    assert started["tags"] == {"isoflop": config_hash(config)}
    ((parameters, _),) = mlflow.named("log_params")
    assert parameters[0]["model.name"] == config.model.name
    assert len(mlflow.named("log_metrics")) == len(read_journal(tmp_path / "run"))
    assert mlflow.named("end_run")


@pytest.mark.parametrize(
    ("name", "broken"),
    [("wandb", "init"), ("wandb", "log"), ("wandb", "finish"), ("mlflow", "start_run"), ("mlflow", "log_metrics")],
)
def test_a_board_that_fails_is_left_out_and_the_run_goes_on(
    name: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(broken)
    plant(monkeypatch, name, recorder)
    with pytest.warns(UserWarning, match=f"left out from here on: no server for {broken}"):
        result = train(run_config(steps=20, **{name: True}), tmp_path / "run")
    assert result.state == "done"
    assert len(recorder.named(broken)) == 1
    assert read_journal(tmp_path / "run")[-1]["step"] == 20


def test_a_board_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="Weights & Biases failed"):
        assert train(run_config(steps=10, wandb=True), tmp_path / "run").state == "done"


def test_what_is_not_a_number_is_not_shown() -> None:
    row = {"step": 3, "loss": float("nan"), "lr": 0.1, "samples": "ab", "heldout_loss": 1.5}
    assert named_values(row) == {"train/learning_rate": 0.1, "heldout/loss": 1.5}
