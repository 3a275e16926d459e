"""A study whose workers are stopped, silent or asked to make room; and one whose data lie elsewhere by now."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from isoflop.config import load_study
from isoflop.errors import Preempted, StudyError
from isoflop.runs.directory import read_status
from isoflop.runs.journal import attempts
from isoflop.study import Store, run_study
from isoflop.study.executors import LocalPool, RunTask, local
from isoflop.study.planned import Catalogue
from isoflop.train.guards import PREEMPTED
from tests.data.pictures import encoded, picture
from tests.study.test_study import Listener, toy_study

STUDY = """
batch_size = 16
[study]
name = "toy"
budgets = [2e9, 4e9, 8e9]
target_budget = 1e10
output = "{output}"
workers = 1
[data]
source = "fractals?classes=20"
heldout = 64
[schedule]
warmup = 10
[families.vit]
sizes = ["vit_w8d2p8", "vit_w12d2p8"]
learning_rates = [0.01, 0.02]
[transfer]
shots = 5
seeds = [0]
finetune_steps = 10
"""


@pytest.mark.long
def test_a_worker_that_is_stopped_is_named_then_killed_and_its_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP, and a clock of our own: no second of it is waited for."""
    monkeypatch.setattr(local, "POLL_SECONDS", 0.01)
    catalogue = Catalogue(toy_study(tmp_path / "toy", checkpoint={"every_seconds": 0.01}))
    run = catalogue.run("vit", "vit_w8d2p8", 6e9, 0.01)
    directory, now, told = Store(tmp_path).run_directory(run.run_id), [0.0], []
    stopped = 0
    with LocalPool(1, clock=lambda: now[0]) as pool:
        for event in pool.run([RunTask(run, directory, None)]):
            if event.kind == "progress" and not stopped:
                stopped = pool._alive[0].process.pid
                os.kill(stopped, signal.SIGSTOP)
                now[0] += local.SILENT_SECONDS + 1
            elif event.kind == "warning":
                told.append(event.error)
                now[0] += local.PATIENCE_SECONDS
            elif event.kind == "died":
                told.append(event.error)
    assert f"its worker, process {stopped}, has been silent for 2 minutes" in told[0]
    assert "killed by SIGKILL; resuming it in a new one" in told[1]
    assert len(told) == 2
    assert (event.kind, event.state) == ("ended", "done")
    assert len(list(attempts(directory))) == 2


@pytest.mark.long
def test_a_worker_that_alone_is_asked_to_stop_saves_its_run_which_goes_on_in_another(tmp_path: Path) -> None:
    run = Catalogue(toy_study(tmp_path / "toy")).run("vit", "vit_w8d2p8", 6e9, 0.01)
    directory, kinds = Store(tmp_path).run_directory(run.run_id), []
    with LocalPool(1) as pool:
        for event in pool.run([RunTask(run, directory, None)]):
            if event.kind == "progress" and "progress" not in kinds:
                os.kill(pool._alive[0].process.pid, signal.SIGTERM)
            kinds.append(event.kind)
    assert (event.kind, event.state) == ("ended", "done")
    assert kinds.count("died") == 1
    first, second = attempts(directory)
    assert second[0]["step"] >= first[-1]["step"] > 0  # to the step


@pytest.mark.long
def test_a_study_that_is_asked_to_stop_saves_its_runs_and_goes_on_from_there(tmp_path: Path) -> None:
    """SIGTERM for the whole group, as schedulers send it: command, workers and their helpers."""
    file = tmp_path / "toy.toml"
    file.write_text(STUDY.format(output=tmp_path / "toy"))
    config = load_study(file, []).config
    process = subprocess.Popen(
        [sys.executable, "-m", "isoflop", "study", "run", str(file)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    journals = "toy/runs/*/attempts/1/metrics-0001.jsonl"
    while not any(b'"train"' in path.read_bytes() for path in tmp_path.glob(journals)):
        assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == PREEMPTED, told
    assert b"run the same command to resume" in told
    assert b"Traceback" not in told
    states = {path.parent.name: read_status(path.parent) for path in tmp_path.glob("toy/runs/*/status.json")}
    assert {status.state for status in states.values()} <= {"done", "preempted"}
    asked = [name for name, status in states.items() if status.state == "preempted"]
    assert asked
    again = [tmp_path / "toy/runs" / name / "attempts/2/metrics-0001.jsonl" for name in asked]
    listener = Listener()
    with pytest.raises(Preempted, match="asked to stop"):
        run_study(config, listener, stop=lambda: all(path.exists() and path.stat().st_size for path in again))
    assert set(asked) <= set(listener.trained)
    for name in asked:
        _, second = attempts(tmp_path / "toy/runs" / name)
        assert second[0]["origin"] == "checkpoint"
        assert second[0]["step"] == states[name].step


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(40):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(picture(number, 8), "PNG"))
    return tmp_path / "images"


def test_a_study_whose_data_have_moved_is_the_same_and_one_on_other_data_is_not(tmp_path: Path, images: Path) -> None:
    def study(folder: Path) -> Any:
        return toy_study(
            tmp_path / "toy", data={"source": f"folder:{folder}", "heldout": 8, "image_size": 8}, batch_size=16
        )

    def claimed(config: Any) -> Catalogue:
        store = Store(tmp_path / "toy")
        catalogue = Catalogue(config, store.begun_at(config))
        store.claim(config, catalogue.source.fingerprint)
        return catalogue

    (tmp_path / "toy").mkdir()
    runs = [("vit", "vit_w8d2p8", 6e8, rate) for rate in (0.01, 0.02)]
    first = claimed(study(images))
    ids = [first.run(*run).run_id for run in runs]
    trunks = [first.run(*run).trunk_id for run in runs]
    shutil.move(images, tmp_path / "moved")
    stored = json.loads((tmp_path / "toy/study.json").read_text())
    stored["config"]["study"]["give_up"] = 0.0  # an option of earlier versions, which was not used
    (tmp_path / "toy/study.json").write_text(json.dumps(stored))
    for _ in range(2):
        moved = claimed(study(tmp_path / "moved"))
        assert [moved.run(*run).run_id for run in runs] == ids
        assert [moved.run(*run).trunk_id for run in runs] == trunks
        assert moved.run(*runs[0]).config.data.source == f"folder:{tmp_path / 'moved'}"
    document = json.loads((tmp_path / "toy/study.json").read_text())
    assert document["config"]["data"]["source"] == f"folder:{tmp_path / 'moved'}"
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    (tmp_path / "other/a/0.png").write_bytes(encoded(picture(99, 8), "PNG"))
    with pytest.raises(StudyError, match="the data have changed since the study started"):
        claimed(study(tmp_path / "other"))
    with pytest.raises(StudyError, match="belongs to another study"):
        claimed(study(tmp_path / "moved").model_copy(update={"batch_size": 8}))


def test_damaged_prices_are_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("{", "[]", '{"prices": 3}', '{"prices": [{"family": "vit"}]}'):
        (tmp_path / "prices.json").write_text(text)
        with pytest.warns(UserWarning, match=r"prices.json: damaged; prices are measured again"):
            assert store.prices() == {}
    store.write_prices({("vit", "vit_w8d2p8"): 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.prices() == {("vit", "vit_w8d2p8"): 0.5}
