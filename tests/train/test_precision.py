"""Precision "auto": chosen once by measurement, before the run has an identity, and kept wherever it goes on."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from isoflop.cli.app import app
from isoflop.config import RunConfig, StudyConfig, config_hash
from isoflop.errors import ConfigError, MachineNotice
from isoflop.models.operators import cpu_has_bfloat16
from isoflop.runs.directory import read_identity
from isoflop.study.plan import plan_study
from isoflop.study.planned import Catalogue
from isoflop.study.store import Store
from isoflop.train import device, loop, train
from isoflop.train.device import Peak, Precision, choose_precision, has_bfloat16, warn_of_slow_precision
from isoflop.train.identity import run_directory
from tests.promises.chaos import run_config
from tests.study.test_rungs import study_config

CPU = torch.device("cpu")


def open_run(precision: str = "auto") -> RunConfig:
    return run_config(steps=2, schedule={"warmup": 0}, precision=precision)


def study(**tables: object) -> StudyConfig:
    return study_config(**tables).model_copy(update={"precision": "auto"})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of an image by precision, which replace the measurement, on a processor that computes in bfloat16."""
    seconds = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(device, "has_bfloat16", lambda where: True)
    for module in ("isoflop.train.loop", "isoflop.study.plan"):
        monkeypatch.setattr(f"{module}.seconds_per_image", lambda config, source: seconds[config.precision])
    return seconds


@pytest.mark.parametrize(
    ("here", "gain", "chosen"), [(False, 9.0, "float32"), (True, 1.05, "float32"), (True, 1.2, "bfloat16")]
)
def test_bfloat16_is_chosen_where_it_is_there_and_pays(
    monkeypatch: pytest.MonkeyPatch, here: bool, gain: float, chosen: str
) -> None:
    monkeypatch.setattr(device, "has_bfloat16", lambda where: here)
    asked: list[str] = []

    def seconds(precision: str) -> float:
        asked.append(precision)
        return gain if precision == "float32" else 1.0

    assert choose_precision(CPU, seconds)[0] == chosen
    assert bool(asked) == here  # where it is not there, nothing is measured


def test_what_the_processor_has_agrees_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)  # the tests may run with less than there is
    cpu_has_bfloat16.cache_clear()
    try:
        assert has_bfloat16(CPU) or not theirs
    finally:
        cpu_has_bfloat16.cache_clear()  # what other tests may use


def test_a_run_stores_what_was_chosen_and_keeps_it(tmp_path: Path, measured: dict[str, float]) -> None:
    train(open_run(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] == "bfloat16"
    begun = read_identity(tmp_path / "run")
    assert begun is not None
    assert begun.run == config_hash(open_run("bfloat16"))
    measured["bfloat16"] = 30.0  # the run goes on where bfloat16 is slow
    (tmp_path / "run" / "status.json").unlink()
    assert train(open_run(), tmp_path / "run").state == "done"
    assert read_identity(tmp_path / "run") == begun
    (tmp_path / "run" / "config.json").unlink()  # a claim that was killed: the identity tells
    train(open_run(), tmp_path / "run")
    assert read_identity(tmp_path / "run") == begun


def test_a_run_of_before_goes_on_in_float32_under_its_name(tmp_path: Path, measured: dict[str, float]) -> None:
    before = run_directory(tmp_path, "vit", open_run("float32"))
    first = train(open_run("float32"), before)
    assert run_directory(tmp_path, "vit", open_run()) == before
    assert train(open_run(), before) == first


def test_a_folder_named_for_auto_is_found_by_the_precision_that_it_has(
    tmp_path: Path, measured: dict[str, float]
) -> None:
    place = run_directory(tmp_path, "vit", open_run())
    train(open_run(), place)
    assert run_directory(tmp_path, "vit", open_run()) == place
    assert run_directory(tmp_path, "vit", open_run("bfloat16")) == place
    assert run_directory(tmp_path, "vit", open_run("float32")) != place


def test_the_runs_of_a_study_have_one_precision_which_it_keeps(tmp_path: Path, measured: dict[str, float]) -> None:
    ladder = {"name": "toy", "budgets": [2e9, 4e9, 8e9], "target_budget": 4e10}
    config = study(study={**ladder, "output": str(tmp_path / "study")})
    plan = plan_study(config)
    assert {run.config.precision for run in plan.first} == {plan.catalogue.config.precision} == {"bfloat16"}
    assert "2 times as fast" in plan.precision
    (tmp_path / "study").mkdir()
    Store(tmp_path / "study").claim(plan.catalogue.config, plan.catalogue.source.fingerprint)
    measured["bfloat16"] = 30.0
    again = plan_study(config)
    assert [run.run_id for run in again.first] == [run.run_id for run in plan.first]
    assert again.precision == "bfloat16, as the study was begun"
    Store(tmp_path / "study").claim(again.catalogue.config, plan.catalogue.source.fingerprint)
    fresh = plan_study(study())
    assert {run.config.precision for run in fresh.first} == {"float32"}


def test_bfloat16_where_it_is_slow_is_one_warning_with_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"float32": 6e10, "bfloat16": 2e9}
    monkeypatch.setattr(device, "has_bfloat16", lambda where: False)
    monkeypatch.setattr(device, "peak_of", lambda where: Peak(rates, 1))
    with pytest.warns(MachineNotice, match="matrix products take 30 times as long as in float32") as told:
        warn_of_slow_precision("bfloat16", CPU)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_precision("float32", CPU)
        monkeypatch.setattr(device, "has_bfloat16", lambda where: True)
        warn_of_slow_precision("bfloat16", CPU)


def test_a_run_in_slow_bfloat16_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(loop, "warn_of_slow_precision", lambda name, where: told.append(name))
    assert train(open_run("bfloat16"), tmp_path).state == "done"
    assert told == ["bfloat16"]


def test_what_nobody_has_resolved_is_refused() -> None:
    with pytest.raises(ConfigError, match='"auto" is for runs and studies'):
        Precision("auto")


def test_a_dry_run_says_what_auto_is(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 2\n[model]\nname = "vit_w12d2p8"\n[data]\nnum_classes = 10\n')
    shown = CliRunner().invoke(app, ["train", str(file), "--dry-run"], env={"COLUMNS": "200"})
    assert "bfloat16, which auto is where it is faster" in " ".join(shown.output.split())


def test_the_chosen_precision_is_measured_on_real_steps() -> None:
    """On whatever machine this runs, the measurement itself works in both precisions."""
    config = study().model_copy(update={"batch_size": 16})
    run = Catalogue(config).run("vit", "vit_w12d2p8", 2e9, 1e-3).config
    for precision in ("float32", "bfloat16"):
        source = Catalogue(config).source
        assert loop.seconds_per_image(run.model_copy(update={"precision": precision}), source) > 0


def test_bfloat16_that_onednn_may_not_use_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.models.operators import cpu_has_bfloat16

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert cpu_has_bfloat16.__wrapped__() is False
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    assert cpu_has_bfloat16.__wrapped__() is True
