"""The executor of one machine: a few worker processes that train runs side by side."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.study.executors.task import Event, Task, after_death, loads
from isoflop.train.machine import usable_cores
from isoflop.train.ranks import LAUNCHED


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    load: list[Task] = field(default_factory=list)  # what it has not ended yet
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

    `workers` is how many there are at most; by default one per core that this process may use.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or usable_cores()
        self._alive: list[_Worker] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._alive:
            worker.process.kill()
            worker.process.wait()
        self._alive.clear()

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """See `Executor.run`."""
        waiting = deque(loads(tasks))
        deaths: Counter[str] = Counter()
        while len(self._alive) < min(self.workers, len(waiting)):
            self._alive.append(self._start())
        with selectors.DefaultSelector() as selector:
            for worker in self._alive:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                self._give(worker, waiting)
            while any(worker.load for worker in self._alive):
                for key, _ in selector.select():
                    worker = key.data
                    if (lines := worker.lines()) is not None:
                        for line in lines:
                            yield self._heard(worker, json.loads(line), waiting)
                        continue
                    selector.unregister(worker.process.stdout)
                    self._alive.remove(worker)
                    yield from self._died(worker, waiting, deaths)
                    if waiting:
                        replacement = self._start()
                        self._alive.append(replacement)
                        selector.register(replacement.process.stdout, selectors.EVENT_READ, replacement)  # type: ignore[arg-type]
                        self._give(replacement, waiting)

    def _start(self) -> _Worker:
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        environment = {**alone, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "isoflop.study.executors.worker"]
        pipe = subprocess.PIPE
        return _Worker(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment))

    def _give(self, worker: _Worker, waiting: deque[list[Task]]) -> None:
        worker.load = list(waiting.popleft()) if waiting else []
        if not worker.load:
            return
        assert worker.process.stdin
        try:
            worker.process.stdin.write(json.dumps([task.to_json() for task in worker.load]).encode() + b"\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it has just died; its closed output says so next

    def _heard(self, worker: _Worker, message: dict[str, Any], waiting: deque[list[Task]]) -> Event:
        event = Event.from_message(message, worker.load[0].run.run_id if worker.load else "")
        if event.kind == "ended":
            worker.load = [task for task in worker.load if task.run.run_id != event.run_id]
            if not worker.load:
                self._give(worker, waiting)
        return event

    def _died(self, worker: _Worker, waiting: deque[list[Task]], deaths: Counter[str]) -> Iterator[Event]:
        code = worker.process.wait()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        again = []
        for task in worker.load:
            event = after_death(task, deaths, cause)
            again += [task] if event.kind == "died" else []
            yield event
        if again:
            waiting.appendleft(again)
