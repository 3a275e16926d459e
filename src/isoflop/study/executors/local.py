"""The executor of one machine: worker processes that train runs in parallel.

A worker sends a heartbeat every 20 seconds. A worker without one (it was stopped, or hangs in the kernel) is reported
after two minutes. After ten minutes it is killed, and another worker resumes its run.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.study.executors.task import Event, RunTask, after_death
from isoflop.train.device import usable_cores
from isoflop.train.ranks import LAUNCHED

SILENT_SECONDS = 120.0  # without a sign of life from a worker, after which it is named
PATIENCE_SECONDS = 600.0  # after which it is killed, and its run goes on in another
STOP_SECONDS = 600.0  # that workers get to save what they train, once they are asked to stop
POLL_SECONDS = 1.0


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    heard_at: float  # when it last said something
    is_named: bool = False  # whether its silence was told
    task: RunTask | None = None  # what it is at
    cut: bytes = b""  # the beginning of a line whose end has not come

    def lines(self) -> list[bytes] | None:
        """What it has said since; None where it is dead. To be called when its output is ready.

        Read without a buffer of Python's: no selector announces a line that waits in one, and a run's last step and its
        end are told in one breath.
        """
        assert self.process.stdout
        found = os.read(self.process.stdout.fileno(), 1 << 16)
        *whole, self.cut = (self.cut + found).split(b"\n")
        return whole if found else None


class LocalPool:
    """Processes of one CPU thread each, kept from run to run and from call to call: importing torch takes seconds.

    `workers` is how many there are at most; by default one per core that this process may use. Once `stop` says yes,
    no run is begun, and those that are trained save a checkpoint and end as "preempted".
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = workers or usable_cores()
        self._stop = stop
        self._clock = clock
        self._stopped_at: float | None = None
        self._alive: list[_Worker] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._alive:
            worker.process.kill()
            worker.process.wait()
        self._alive.clear()

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        """See `Executor.run`."""
        waiting = deque(tasks)
        deaths: Counter[str] = Counter()
        while len(self._alive) < min(self.workers, len(waiting)):
            self._alive.append(self._start())
        with selectors.DefaultSelector() as selector:
            for worker in self._alive:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                self._give(worker, waiting)
            while waiting or any(worker.task for worker in self._alive):
                yield from self._look_after(waiting)
                for key, _ in selector.select(POLL_SECONDS):
                    worker = key.data
                    if (lines := worker.lines()) is not None:
                        worker.heard_at, worker.is_named = self._clock(), False
                        for line in lines:
                            yield from self._heard(worker, json.loads(line), waiting, deaths)
                        continue
                    selector.unregister(worker.process.stdout)
                    self._alive.remove(worker)
                    yield from self._died(worker, waiting, deaths)
                    if waiting:
                        replacement = self._start()
                        self._alive.append(replacement)
                        selector.register(replacement.process.stdout, selectors.EVENT_READ, replacement)  # type: ignore[arg-type]
                        self._give(replacement, waiting)

    def _look_after(self, waiting: deque[RunTask]) -> Iterator[Event]:
        """Passes the wish to stop on, names workers that are silent, and kills those that stay so."""
        now = self._clock()
        if self._stopped_at is None and self._stop():
            self._stopped_at = now
            for worker in self._alive:
                worker.process.send_signal(signal.SIGTERM)
        if self._stopped_at is not None:
            waiting.clear()
        for worker in self._alive:
            if not worker.task:
                continue
            silent = now - worker.heard_at
            late = self._stopped_at is not None and now - self._stopped_at > STOP_SECONDS
            if silent > PATIENCE_SECONDS or late:
                worker.process.kill()  # its closed output says so next
            elif silent > SILENT_SECONDS and not worker.is_named:
                worker.is_named = True
                told = (
                    f"its worker, process {worker.process.pid}, has been silent for {silent / 60:.0f} minutes: it is "
                    f"stopped, or hangs; after {PATIENCE_SECONDS / 60:.0f} another worker resumes the run"
                )
                yield Event("warning", worker.task.run.run_id, error=told)

    def _start(self) -> _Worker:
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        environment = {**alone, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from isoflop.study.executors.worker import main; main()"]
        pipe = subprocess.PIPE
        return _Worker(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment), self._clock())

    def _give(self, worker: _Worker, waiting: deque[RunTask]) -> None:
        worker.task = waiting.popleft() if waiting else None
        worker.heard_at, worker.is_named = self._clock(), False
        if not worker.task:
            return
        assert worker.process.stdin
        try:
            worker.process.stdin.write(json.dumps(worker.task.to_json()).encode() + b"\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it has just died; its closed output says so next

    def _heard(
        self, worker: _Worker, message: dict[str, Any], waiting: deque[RunTask], deaths: Counter[str]
    ) -> Iterator[Event]:
        if message["event"] == "alive":
            return
        event = Event.from_message(message, worker.task.run.run_id if worker.task else "")
        if event.kind == "ended":
            task, worker.task = worker.task, None
            assert task is not None
            if event.state == "preempted" and self._stopped_at is None:  # somebody has stopped this worker alone
                worker.process.stdin.close()  # type: ignore[union-attr]
                event = after_death(task, deaths, "asked to stop")
                if event.kind == "died":
                    waiting.appendleft(task)
            else:
                self._give(worker, waiting)
        yield event

    def _died(self, worker: _Worker, waiting: deque[RunTask], deaths: Counter[str]) -> Iterator[Event]:
        worker.process.stdin.close()  # type: ignore[union-attr]
        code = worker.process.wait()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if not worker.task:
            return
        event = after_death(worker.task, deaths, cause)
        if event.kind == "died":
            waiting.appendleft(worker.task)
        yield event
