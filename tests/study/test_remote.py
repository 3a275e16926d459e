"""Training on other machines: bundles, mail on shared storage, and what becomes of jobs that are lost."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.runs.directory import read_status
from isoflop.study import Store
from isoflop.study.executors import RunTask
from isoflop.study.executors.remote import Mailbox, Sender, bundles, optional, train_remotely
from isoflop.study.planned import Catalogue
from tests.processes import SERVER
from tests.study import mortal
from tests.study.test_study import toy_study


@dataclass
class Process:
    """A job that is a process of this machine."""

    process: Any

    def ended_as(self) -> str | None:
        code = self.process.exitcode
        return None if code is None else "" if code == 0 else f"lost (exit code {code})"

    def cancel(self) -> None:
        self.process.kill()
        self.process.join()


@dataclass
class Machines:
    """Remembers the jobs that were submitted, which die as `deaths` says."""

    deaths: Path
    jobs: list[Process] = field(default_factory=list)

    def submit(self, tasks: str, mail: Path) -> Process:
        process = SERVER.Process(target=mortal.main, args=(self.deaths, tasks, str(mail)))
        process.start()
        self.jobs.append(Process(process))
        return self.jobs[-1]


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return toy_study(tmp_path, batch_size=16)


def tasks_of(config: StudyConfig, budgets: list[float]) -> list[RunTask]:
    catalogue, store = Catalogue(config), Store(config.directory)
    runs = [catalogue.run("vit", "vit_w8d2p8", budget, 0.01) for budget in budgets]
    return [RunTask(run, store.run_directory(run.run_id), store.trunk_directory(run), seconds=1.0) for run in runs]


def test_bundles_hold_every_run_once_and_no_worker_is_without_any(config: StudyConfig) -> None:
    tasks = tasks_of(config, [6e8 * k for k in range(1, 13)])
    for workers, seconds in ((1, 4.0), (2, 4.0), (3, 100.0), (64, 100.0), (2, 0.0)):
        made = bundles(tasks, workers, seconds)
        assert [task for bundle in made for task in bundle] == tasks
        assert len(made) >= min(workers, len(tasks))
    assert len(bundles(tasks, 1, 4.0)) == 3
    assert len(bundles(tasks, 2, 0.0)) == 12


def test_mail_is_read_once_and_torn_lines_are_passed_over(tmp_path: Path) -> None:
    box = Mailbox(tmp_path / "mail")
    assert list(box.events()) == []
    Sender(tmp_path / "mail")({"event": "started", "run": "a"})
    with (tmp_path / "mail").open("a") as file:
        file.write('{"event": "progr')  # killed here
    assert list(box.events()) == [{"event": "started", "run": "a"}]
    Sender(tmp_path / "mail")({"event": "ended", "run": "a"})
    assert list(box.events()) == [{"event": "ended", "run": "a"}]
    assert list(box.events()) == []


def test_a_lost_job_is_resumed_without_what_it_had_finished(config: StudyConfig, tmp_path: Path) -> None:
    tasks = tasks_of(config, [1e8, 3e8, 1.2e8])
    machines = Machines(mortal.deaths_in(tmp_path / "deaths", tasks[1].run.run_id))
    tasks[:2] = [replace(task, seconds=0.0) for task in tasks[:2]]  # so that all are one bundle
    mail = tmp_path / ".mail"
    events = list(train_remotely(tasks, machines.submit, workers=1, folder=mail, bundle_seconds=1.0, pause=0.05))
    assert [(e.run_id, e.state) for e in events if e.kind == "ended"] == [(t.run.run_id, "done") for t in tasks]
    assert [e.run_id for e in events if e.kind == "died"] == [tasks[1].run.run_id]
    assert len(machines.jobs) == 2
    assert all(read_status(task.directory).state == "done" for task in tasks)
    assert not list(mail.iterdir())


@dataclass
class Told:
    """A job of which only what it says is there."""

    end: str | None
    cancelled: bool = False

    def ended_as(self) -> str | None:
        return self.end

    def cancel(self) -> None:
        self.cancelled = True


def test_a_run_that_kills_its_worker_again_and_again_fails_and_the_others_go_on(
    config: StudyConfig, tmp_path: Path
) -> None:
    bad, good = tasks_of(config, [6e9, 1e8])
    submitted: list[list[str]] = []

    def submit(tasks: str, mail: Path) -> Told:
        runs = [task["run"] for task in json.loads(tasks)]
        submitted.append(runs)
        send = Sender(mail)
        send({"event": "started", "run": runs[0]})
        if bad.run.run_id in runs:
            return Told("lost (no memory)")
        send({"event": "ended", "run": runs[0], "state": "done", "error": ""})
        return Told("")

    tasks = [replace(bad, seconds=0.0), good]  # one bundle
    events = list(train_remotely(tasks, submit, workers=1, folder=tmp_path / ".mail", bundle_seconds=1.0, pause=0.0))
    ended = {event.run_id: event for event in events if event.kind == "ended"}
    assert ended[bad.run.run_id].state == "failed"
    assert "lost (no memory), for the 3rd time" in ended[bad.run.run_id].error
    assert ended[good.run.run_id].state == "done"
    assert submitted == [[bad.run.run_id, good.run.run_id]] * 3 + [[good.run.run_id]]


def test_a_study_that_is_stopped_cancels_its_jobs(config: StudyConfig, tmp_path: Path) -> None:
    job = Told(None)

    def submit(tasks: str, mail: Path) -> Told:
        Sender(mail)({"event": "started", "run": json.loads(tasks)[0]["run"]})
        return job

    events = train_remotely(
        tasks_of(config, [6e9]), submit, workers=1, folder=tmp_path / ".mail", bundle_seconds=0.0, pause=0.0
    )
    assert next(events).kind == "started"
    events.close()
    assert job.cancelled
    assert not list((tmp_path / ".mail").iterdir())


def test_what_no_job_could_do_better_ends_the_study_at_once(config: StudyConfig, tmp_path: Path) -> None:
    class Broken(Told):
        def ended_as(self) -> str | None:
            raise StudyError("no module named isoflop there")

    jobs: list[Broken] = []

    def submit(tasks: str, mail: Path) -> Broken:
        jobs.append(Broken(None))
        return jobs[-1]

    tasks = tasks_of(config, [1e8, 1.2e8])
    with pytest.raises(StudyError, match="no module"):
        list(train_remotely(tasks, submit, workers=2, folder=tmp_path / ".mail", bundle_seconds=0.0, pause=0.0))
    assert all(job.cancelled for job in jobs)


def test_a_package_that_is_not_installed_is_named_with_its_cure() -> None:
    with pytest.raises(StudyError, match=r"needs no_such_ray, .*: pip install 'isoflop\[cluster\]'"):
        optional("no_such_ray")
