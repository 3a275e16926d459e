"""A whole study at toy size: answers, resumes, survives its workers, and says what went wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.runs import results
from isoflop.runs.directory import read_status
from isoflop.study import Narrator, Store, open_study, run_study
from isoflop.study.adaptive import Stage
from isoflop.study.answer import answer_from
from isoflop.study.executors import LocalPool, RunTask
from isoflop.study.planned import Catalogue, PlannedRun
from tests.study.here import Here
from tests.study.test_rungs import study_config


class Listener(Narrator):
    """Remembers what the study said."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.lines: list[str] = []
        self.stages: list[Stage] = []

    def thought(self, stage: Stage, before: Stage | None) -> None:
        self.stages.append(stage)

    def rung(self, number: int, count: int | None, runs: Sequence[PlannedRun]) -> None:
        self.trained += [run.run_id for run in runs]

    def line(self, text: str) -> None:
        self.lines.append(text)


def toy_study(folder: Path, **changes: Any) -> StudyConfig:
    study = {
        "name": "toy",
        "budgets": [2e8, 4e8, 8e8],
        "target_budget": 1.6e9,
        "output": str(folder),
        "workers": 2,
        **changes.pop("study", {}),
    }
    families = {"vit": {"sizes": ["vit_w8d2p8", "vit_w12d2p8"], "learning_rates": [0.01, 0.02]}}
    small = {"transfer": {"shots": 5, "seeds": [0], "finetune_steps": 10}, "laws": {"bootstrap": 20}, "batch_size": 24}
    return study_config(**{"study": study, "families": families, **small, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, dict[str, Any], Listener]:
    config = toy_study(tmp_path_factory.mktemp("study") / "toy")
    listener = Listener()
    document = run_study(config, listener, command="isoflop study run toy.toml", executor=Here())
    return config, document, listener


def test_a_study_answers_trains_its_answer_and_grades_itself(
    finished: tuple[StudyConfig, dict[str, Any], Listener],
) -> None:
    config, document, _ = finished
    answer = document["families"]["vit"]
    assert document["best"] == "vit"
    assert answer["images"] * answer["flops_per_image"] == pytest.approx(1.6e9, rel=0.05)
    assert answer["interval"][0] < answer["predicted_loss"] < answer["interval"][1]
    assert document["final"]["measured_loss"] > 0
    rows = {row["run_id"]: row for row in Store(config.directory).rows()}
    assert set(document["hours"]) == {"ladder", "answer", "everything else"}
    assert all(pair["planned"] > 0 < pair["spent"] for pair in document["hours"].values())
    selected = document["selected"]
    assert rows[selected["run_id"]]["target"] == min(row["target"] for row in rows.values())
    assert open_study(config.directory).run_directory().name == selected["run_id"]
    assert selected["accuracy"]["part"] == "test"
    low, high = selected["accuracy"]["interval"]
    assert 0 <= low < selected["accuracy"]["accuracy"] < high <= 1
    final = json.loads((config.directory / "runs" / document["final"]["run_id"] / "config.json").read_text())
    assert final["evaluation"]["restore_best"]
    assert {row["pretrained"] for row in document["transfer"]["rows"]} == {True, False}
    assert (config.directory / "report.html").stat().st_size > 10_000
    assert json.loads((config.directory / "answer.json").read_text()) == json.loads(json.dumps(document))


def test_the_table_has_every_run_and_the_budgets_are_kept(
    finished: tuple[StudyConfig, dict[str, Any], Listener],
) -> None:
    config, _, listener = finished
    rows = Store(config.directory).rows()
    assert {row["run_id"] for row in rows} == set(listener.trained)
    assert all(row["status"] == "done" for row in rows)
    assert all(row["train_flops"] == pytest.approx(row["budget"], rel=0.05) for row in rows)
    assert not (config.directory / "trunks").exists()


def test_running_again_trains_nothing_and_answers_the_same(
    finished: tuple[StudyConfig, dict[str, Any], Listener],
) -> None:
    config, document, _ = finished
    listener = Listener()
    again = run_study(config, listener, executor=Here())
    assert listener.trained == []
    assert again["families"] == document["families"]
    assert again["finals"] == document["finals"]
    kept = {name: pair["spent"] for name, pair in again["hours"].items()}
    assert kept == pytest.approx({name: pair["spent"] for name, pair in document["hours"].items()}, rel=0.05)


def test_the_answer_does_not_depend_on_diverged_or_failed_runs(
    finished: tuple[StudyConfig, dict[str, Any], Listener],
) -> None:
    config, document, _ = finished
    rows = Store(config.directory).rows()
    ladder = [row for row in rows if row["role"] == "ladder"]
    broken = {**ladder[0], "run_id": "x", "status": "diverged", "heldout_loss": None, "budget": ladder[0]["budget"]}
    failed = {**ladder[1], "run_id": "y", "status": "failed", "heldout_loss": 0.001, "error": "boom"}
    answer = answer_from(config, Catalogue(config), [*rows, broken, failed])
    assert answer.best.predicted_loss == pytest.approx(document["families"]["vit"]["predicted_loss"])


def test_a_folder_of_another_study_is_refused(finished: tuple[StudyConfig, dict[str, Any], Listener]) -> None:
    config, _, _ = finished
    other = toy_study(config.directory, study={"target_budget": 3e9})
    with pytest.raises(StudyError, match="belongs to another study"):
        run_study(other)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StudyError, match=r"not a study \(it holds thesis.txt\)"):
        run_study(toy_study(tmp_path))


def test_two_studies_cannot_write_one_folder(tmp_path: Path) -> None:
    from isoflop.runs.lock import sole_writer

    with sole_writer(tmp_path / "toy", StudyError), pytest.raises(StudyError, match="another isoflop process"):
        run_study(toy_study(tmp_path / "toy"))


def test_an_unknown_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from isoflop.errors import ModelError

    config = toy_study(tmp_path / "toy", families={"vit": {"sizes": ["vit_w8d2p9"]}})
    with pytest.raises(ModelError, match="did you mean"):
        run_study(config)
    assert not (tmp_path / "toy").exists()


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    config = toy_study(tmp_path / "toy")
    catalogue = Catalogue(config)
    good = catalogue.run("vit", "vit_w8d2p8", 6e8, 0.01)
    bad = catalogue.run("vit", "vit_w12d2p8", 6e8, 0.01)
    object.__setattr__(bad.config.model, "name", "no_such_model")
    store = Store(tmp_path)
    tasks = [RunTask(run, store.run_directory(run.run_id), None) for run in (bad, good)]
    ended = {event.run_id: event for event in Here().run(tasks) if event.kind == "ended"}
    assert ended[good.run_id].state == "done"
    assert ended[bad.run_id].state == "failed"
    assert "no_such_model" in ended[bad.run_id].error


HASTY = """
import json, os, sys
from isoflop.study.executors import worker

def main():
    for line in sys.stdin:
        task = json.loads(line)
        step = {"event": "progress", "run": task["run"], "step": 1}
        end = {"event": "ended", "run": task["run"], "state": "done"}
        told = "".join(json.dumps(message) + "\\n" for message in (step, step, end, step)).encode()
        os.write(1, told[:-9])  # the last line is cut in two
        os.write(1, told[-9:])

worker.main, worker.PRELOADED = main, ()
worker.serve()
"""


Workers = Callable[[str], None]


@pytest.fixture
def workers_are(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Has the local pool start this program in the place of workers."""
    start = subprocess.Popen

    def use(program: str) -> None:
        monkeypatch.setattr(
            "isoflop.study.executors.local.subprocess.Popen",
            lambda command, **more: start([command[0], "-c", program], **more),
        )

    return use


def test_everything_that_a_worker_says_at_once_is_heard(tmp_path: Path, workers_are: Workers) -> None:
    workers_are(HASTY)
    catalogue = Catalogue(toy_study(tmp_path / "toy"))
    tasks = [RunTask(catalogue.run("vit", "vit_w8d2p8", 6e8, 0.01 * k), tmp_path, None) for k in range(1, 9)]
    with LocalPool(2) as pool:
        ended = [event for event in pool.run(tasks) if event.kind == "ended"]
    assert sorted(event.run_id for event in ended) == sorted(task.run.run_id for task in tasks)
    assert {event.state for event in ended} == {"done"}


def test_a_pool_goes_on_when_worker_and_fork_server_are_killed(tmp_path: Path, workers_are: Workers) -> None:
    workers_are(HASTY)
    catalogue = Catalogue(toy_study(tmp_path / "toy"))
    task = RunTask(catalogue.run("vit", "vit_w8d2p8", 6e8, 0.01), tmp_path, None)
    with LocalPool(1) as pool:
        list(pool.run([task]))
        server, worker = pool._server.process, pool._alive[0].process.pid
        assert Path(f"/proc/{worker}/stat").read_text().split()[3] == str(server.pid)  # its parent
        server.kill()
        server.wait()
        os.kill(worker, signal.SIGKILL)
        events = list(pool.run([task]))
        successor = pool._server.process
    assert [event.error for event in events if event.kind == "died"] == [
        "its worker was lost, with the process that had started it; resuming it in a new one"
    ]
    assert "done" in [event.state for event in events]
    assert successor.returncode == 0  # it ends with the pool


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own with the options that the test names."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("mounted", ["ro"], indirect=True)
def test_a_read_only_disk_is_refused_in_one_line(mounted: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot write here: Read-only file system; choose another output folder"):
        run_study(toy_study(mounted / "toy"))


@pytest.mark.parametrize("mounted", ["size=400k"], indirect=True)
def test_a_full_disk_stops_the_study_with_one_line(mounted: Path) -> None:
    with pytest.raises(StudyError, match=r"No space left on device") as caught:
        run_study(toy_study(mounted / "toy"), executor=Here())
    assert "\n" not in str(caught.value)
    for status in mounted.rglob("status.json"):
        json.loads(status.read_text())  # what is there is whole


@pytest.mark.long  # test_remote.py has the same of a job
def test_a_killed_worker_costs_time(tmp_path: Path, mortal_workers: Callable[..., None]) -> None:
    mortal_workers("")
    config = toy_study(tmp_path / "toy")
    run = Catalogue(config).run("vit", "vit_w8d2p8", 6e8, 0.01)
    store = Store(tmp_path)
    with LocalPool(1) as pool:
        events = list(pool.run([RunTask(run, store.run_directory(run.run_id), None)]))
    assert [event.kind for event in events].count("died") == 1
    assert (events[-1].kind, events[-1].state) == ("ended", "done")
    assert read_status(store.run_directory(run.run_id)).state == "done"


DOOMED = """
import json, os, signal, sys
from isoflop.study.executors import worker

def main():
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps({"event": "progress", "run": task["run"], "step": 1}), flush=True)
        if task["run"] == RUN:
            os.kill(os.getpid(), signal.SIGKILL)
        print(json.dumps({"event": "ended", "run": task["run"], "state": "done"}), flush=True)

worker.main, worker.PRELOADED = main, ()
worker.serve()
"""


def test_a_run_that_kills_three_workers_fails_and_the_others_go_on(tmp_path: Path, workers_are: Workers) -> None:
    catalogue = Catalogue(toy_study(tmp_path / "toy"))
    bad, good = (catalogue.run("vit", "vit_w8d2p8", 6e8, rate) for rate in (0.01, 0.02))
    workers_are(DOOMED.replace("RUN", repr(bad.run_id)))
    with LocalPool(1) as pool:
        events = list(pool.run([RunTask(bad, tmp_path, None), RunTask(good, tmp_path, None)]))
    assert [event.kind for event in events].count("died") == 2
    ended = {event.run_id: event for event in events if event.kind == "ended"}
    assert ended[bad.run_id].state == "failed"
    assert "killed by SIGKILL, for the 3rd time" in ended[bad.run_id].error
    assert ended[good.run_id].state == "done"


def test_an_adaptive_study_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    class Stop(Exception): ...

    class Impatient(Listener):
        def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
            if finished == 6:  # two runs into the second stage
                raise Stop

    config = toy_study(tmp_path / "toy", study={"budget": 5.1e9})
    with pytest.raises(Stop):
        run_study(config, Impatient(), executor=Here())
    listener = Listener()
    document = run_study(config, listener, executor=Here())
    rows = Store(config.directory).rows()
    assert len(listener.trained) <= len(rows) - 6
    assert document["final"]["status"] == "done"
    planner, spent = document["planner"], document["spent"]
    assert planner["stop"]
    assert planner["ladder_spent"] <= planner["limit"] - planner["reserved"]
    assert planner["ladder_spent"] < planner["spent"] <= planner["limit"]
    assert sum(row["train_flops"] for row in rows) <= 1.05 * config.study.budget / (1 - spent["saved"])
    assert any(row["trunk_steps"] for row in rows)

    again = Listener()
    assert run_study(config, again, executor=Here())["families"] == document["families"]
    assert again.trained == []
    assert again.stages == listener.stages


def test_there_are_as_many_workers_as_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4})  # of a container, or under taskset
    assert LocalPool().workers == 3
    assert LocalPool(5).workers == 5


def test_a_table_that_was_edited_by_hand_is_told_in_one_line(
    finished: tuple[StudyConfig, dict[str, Any], Listener], tmp_path: Path
) -> None:
    config, _, _ = finished
    whole = (config.directory / "results.csv").read_text()
    count = whole.splitlines()[0].count(",") + 1
    for damaged, why in (
        ("", "no column `run_id`"),
        (whole.replace(",role,", ",rôle,"), "no column `role`"),
        (whole.rstrip("\n")[:-30], f"cells of {count}"),
        (whole + "a,b\n", f"has 2 cells of {count}"),
        (whole.replace(",ladder,", ",ladder,many", 1), "`flops_per_image` is 'many"),
    ):
        (tmp_path / "results.csv").write_text(damaged)
        with pytest.raises(StudyError, match=re.escape(why)) as caught:
            Store(tmp_path).rows()
        assert "\n" not in str(caught.value)
    (tmp_path / "results.csv").write_bytes(whole.encode() + b"\xff\xfe")
    with pytest.raises(StudyError, match="writes it again"):
        Store(tmp_path).rows()


@pytest.mark.parametrize("text", ["[]", "{}", "", "null"])
def test_a_study_whose_own_file_is_damaged_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    config = toy_study(tmp_path)
    store = Store(tmp_path)
    store.claim(config, "fingerprint")
    (tmp_path / "study.json").write_text(text)
    for read in (partial(store.claim, config, "fingerprint"), partial(store.begun_at, config)):
        with pytest.raises(StudyError, match=r"study.json: not readable"):
            read()


def test_a_changed_digit_of_table_or_answer_is_noticed(
    finished: tuple[StudyConfig, dict[str, Any], Listener], tmp_path: Path
) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(finished[0].directory, folder, ignore=shutil.ignore_patterns("runs", "trunks"))
    store = Store(folder)
    table = (folder / "results.csv").read_text()
    for name, read in (("results.csv", store.rows), ("answer.json", partial(store.read, "answer.json"))):
        read()
        path = folder / name
        whole = path.read_bytes()
        place = next(place for place in range(len(whole) // 2, len(whole)) if whole[place : place + 1] == b"3")
        path.write_bytes(whole[:place] + b"2" + whole[place + 1 :])
        with pytest.raises(StudyError, match=rf"{name}: damaged, or edited: its SHA-256 .* writes it again"):
            read()
        path.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_atomically", _killed)
        with pytest.raises(KeyboardInterrupt):
            store.write_rows([])
    assert (folder / "results.csv").read_text() == table
    assert store.rows()  # killed between the record and the table
    store.write_rows([])
    assert store.rows() == []


def _killed(path: Path, text: str) -> None:
    raise KeyboardInterrupt
