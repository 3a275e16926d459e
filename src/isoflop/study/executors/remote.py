"""Training runs on other machines: the common part of the Ray and SLURM executors.

Runs are sent in bundles, because starting a job takes longer than training a tiny run. Messages of a bundle come
through a file on the shared storage of the runs; the cluster only reports whether a job is alive.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from isoflop.errors import StudyError
from isoflop.study.executors.task import Event, RunTask, after_death
from isoflop.study.executors.worker import Message, train_task, warnings_sent
from isoflop.train.guards import asked_to_stop

# What a worker on another machine says: JSON lines in a file on the storage that all machines share.


class Sender:
    """Appends messages to the file `path`; a worker that was started again goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._file.write("\n")  # the last worker's last line may be torn

    def __call__(self, message: Message) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


class Mailbox:
    """Reads what has been written to the file `path`, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def events(self) -> Iterator[Message]:
        """The messages since the last call. Damaged lines are skipped; an incomplete one waits for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


PATIENCE = 120.0  # seconds in which a worker whose node is lost is sure to let go of its run's folder
SLOW_MAIL = 30.0  # seconds that a shared file system may take to show what another machine has written
LONG_WAIT = 300.0  # seconds without a word after which a study says that it waits


class Job(Protocol):
    """Something on the cluster that trains a bundle."""

    def ended_as(self) -> str | None:
        """None while it may still work; "" when it has returned; else what it was, when it was lost ("killed", say).

        Raises StudyError when no other job would fare better.
        """
        ...

    def cancel(self) -> None:
        """Ends it."""
        ...


Submit = Callable[[str, Path], Job]  # takes the arguments of `serve`


def serve(bundle: str, mail: Path) -> None:
    """What a job does: trains the tasks of `bundle` (JSON), one after another, and writes what happens to `mail`."""
    send = Sender(mail)
    with ExitStack() as stack:
        stack.enter_context(warnings_sent(send))
        is_asked = "SLURM_JOB_ID" in os.environ and threading.current_thread() is threading.main_thread()
        stop = stack.enter_context(asked_to_stop()) if is_asked else (lambda: False)  # Ray has its own use of signals
        for task in json.loads(bundle):
            if not stop():
                train_task(task, send, patience=PATIENCE, stop=stop)


@dataclass
class _Flight:
    """A bundle on its way."""

    left: list[RunTask]  # those that have not ended
    job: Job
    mailbox: Mailbox
    silent_since: float | None = field(default_factory=time.monotonic)  # None once it has said something

    def events(self) -> Iterator[Event]:
        for message in self.mailbox.events():
            self.silent_since = None
            event = Event.from_message(message, self.left[0].run.run_id if self.left else "")
            if event.state == "preempted":
                continue  # its job was asked to stop: it ends without this run, which goes on in another
            if event.kind == "ended":
                self.left = [task for task in self.left if task.run.run_id != event.run_id]
            yield event
        if self.silent_since is not None and time.monotonic() - self.silent_since > LONG_WAIT:
            self.silent_since = None
            waited = f"no machine has taken it for {LONG_WAIT / 60:.0f} minutes; waiting for room on the cluster"
            yield Event("warning", self.left[0].run.run_id, error=waited)


def train_remotely(
    tasks: Sequence[RunTask],
    submit: Submit,
    *,
    workers: int,
    folder: Path,
    bundle_seconds: float,
    pause: float,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains `tasks` in jobs made by `submit`, `workers` at a time; yields what happens, see `Executor.run`.

    Args:
        folder: where the mail lies, on storage that the jobs share.
        bundle_seconds: how much work a job should have at least.
        pause: seconds between two looks at the jobs.
        stop: once it says yes, all jobs are cancelled. A job of SLURM then saves what it trains.

    Jobs that still live when the iterator is closed are cancelled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = deque(bundles(tasks, workers, bundle_seconds))
    flights: list[_Flight] = []
    deaths: Counter[str] = Counter()
    try:
        while (waiting or flights) and not stop():
            while waiting and len(flights) < workers:
                flights.append(_launch(waiting.popleft(), submit, folder))
            time.sleep(pause)
            for flight in list(flights):
                ended_as = flight.job.ended_as()
                yield from flight.events()  # after the question, so that nothing written before the end is missed
                if ended_as is None:
                    continue
                if ended_as == "" and flight.left:
                    yield from _late_news(flight)
                flights.remove(flight)
                flight.mailbox.path.unlink(missing_ok=True)
                if not flight.left:
                    continue
                at, *later = flight.left  # tasks are trained in their order, so it was at the first
                event = after_death(at, deaths, ended_as or "gone without a word")
                yield event
                if left := [at, *later] if event.kind == "died" else later:
                    waiting.appendleft(left)
    finally:
        for flight in flights:
            flight.job.cancel()
            flight.mailbox.path.unlink(missing_ok=True)


def _launch(bundle: list[RunTask], submit: Submit, folder: Path) -> _Flight:
    mail = folder.absolute() / f"{uuid.uuid4().hex[:12]}.jsonl"
    job = submit(json.dumps([task.to_json() for task in bundle]), mail)
    return _Flight(bundle, job, Mailbox(mail))


def _late_news(flight: _Flight) -> Iterator[Event]:
    end = time.monotonic() + SLOW_MAIL
    while flight.left and time.monotonic() < end:
        time.sleep(0.2)
        yield from flight.events()


def bundles(tasks: Sequence[RunTask], workers: int, seconds: float) -> list[list[RunTask]]:
    """`tasks` in their order, as many together as make up `seconds` of work, but so that no worker is without any."""
    goal = min(seconds, sum(task.seconds for task in tasks) / max(workers, 1) / 2)
    made: list[list[RunTask]] = []
    filled = goal
    for task in tasks:
        if filled >= goal:
            made.append([])
            filled = 0.0
        made[-1].append(task)
        filled += task.seconds
    return made


def optional(package: str) -> Any:
    """The module of the extra `cluster`; StudyError when it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise StudyError(
            f"this executor needs {package}, which is not installed: pip install 'isoflop[cluster]'"
        ) from error
