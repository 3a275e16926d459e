"""A study can be judged by what its backbones are worth on another task."""

from pathlib import Path

import pytest

from isoflop.config import TargetConfig, TransferConfig
from isoflop.errors import ConfigError
from isoflop.runs.results import judged
from isoflop.study import run_study
from isoflop.study.executors import RunTask
from isoflop.study.executors.worker import Message, measure_target, read_target, train_task
from isoflop.study.planned import Catalogue
from isoflop.study.store import Store, finite_loss
from isoflop.train import train
from tests.promises.chaos import run_config
from tests.study.here import Here
from tests.study.test_rungs import study_config


def test_a_metric_names_a_protocol_and_its_shots() -> None:
    transfer = TransferConfig(dataset="digits", seeds=(3,))
    assert TargetConfig().protocol(transfer) is None
    for metric, protocol, shots in (("fewshot10", "ridge", 10), ("probe", "probe", 0), ("finetune5", "finetune", 5)):
        found = TargetConfig(metric=metric).protocol(transfer)
        assert found is not None
        assert (found.protocols, found.shots, found.seeds) == ((protocol,), (shots,), (3,))
    with pytest.raises(ConfigError, match=r'`target.metric` = "fewshots" is not one of heldout_loss, fewshot10'):
        study_config(target={"metric": "fewshots"})


def test_the_target_is_measured_once_and_kept_with_its_protocol(tmp_path: Path) -> None:
    train(run_config(steps=20), tmp_path / "a")
    protocol = TransferConfig(protocols=("ridge",), shots=(5,), seeds=(0,))
    assert read_target(tmp_path / "a", protocol) is None
    measure_target(tmp_path / "a", protocol)
    found = read_target(tmp_path / "a", protocol)
    assert found is not None
    assert found["error"] == pytest.approx(1 - found["row"]["accuracy_mean"])
    assert read_target(tmp_path / "a", protocol.model_copy(update={"shots": (1,)})) is None


def test_a_worker_measures_the_target_and_a_run_is_done_only_then(tmp_path: Path) -> None:
    config = study_config(target={"metric": "fewshot5"}, transfer={"seeds": [0]}, batch_size=8)
    store = Store(tmp_path, config.target.protocol(config.transfer))
    run = Catalogue(config).run("vit", "vit_w4d1p8", 1e8, 1e-2)
    task = RunTask(run, store.run_directory(run.run_id), None, store.target).to_json()
    messages: list[Message] = []
    train(run.config, store.run_directory(run.run_id))
    assert store.row(run, None)["status"] == "running"  # trained, not yet judged
    train_task(task, messages.append)
    assert messages[-1]["state"] == "done"
    row = store.row(run, None)
    assert row["status"] == "done"
    assert 0 < row["target"] < 1 < row["heldout_loss"]
    assert finite_loss(row) == row["target"]
    assert judged([row])[0]["heldout_loss"] == row["target"]
    assert Store(tmp_path).row(run, None)["target"] == row["heldout_loss"]  # a study of the held-out loss


@pytest.mark.long
@pytest.mark.timeout(1800)  # a study beside other work
def test_laws_are_fitted_to_the_error_on_the_target_task(tmp_path: Path) -> None:
    study = {"name": "t", "budgets": [1e8, 2e8, 4e8, 8e8], "target_budget": 1.6e9, "output": str(tmp_path / "t"),
             "workers": 1}  # fmt: skip
    config = study_config(
        study=study,
        families={"vit": {"sizes": ["vit_w4d1p8", "vit_w6d1p8"], "learning_rates": [1e-2, 2e-2]}},
        target={"metric": "fewshot5"},
        transfer={"seeds": [0], "protocols": ["ridge"]},
        batch_size=8,
    )
    document = run_study(config, executor=Here())
    rows = Store(config.directory).rows()
    done = [row for row in rows if row["status"] == "done"]
    assert done
    assert all(0 < row["target"] < 1 for row in done)
    assert all(row["target"] != row["heldout_loss"] for row in done)
    (family,) = document["families"].values()
    assert family["predicted_loss"] < 1.0  # an error, where held-out losses are above 2
    (final,) = document["finals"].values()
    assert final["measured_loss"] == next(row["target"] for row in rows if row["role"] == "final")
    page = (config.directory / "report.html").read_text()
    assert "expected 5-shot error on digits" in page
    assert '"text":"5-shot error on digits (share of test images)"' in page  # an axis
    assert '"text":"held-out loss"' not in page
