"""The local engine: a few worker processes on this machine that train runs side by side."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isoflop.config import TransferConfig
from isoflop.study.planned import PlannedRun
from isoflop.train.halfway import Limit

MAX_DEATHS = 3  # of workers, over one run, before the run counts as failed


@dataclass(frozen=True)
class Task:
    """A run to train, where, and the folder of steps it may share with shorter and longer ones."""

    run: PlannedRun
    directory: Path
    trunk: Path | None
    target: TransferConfig | None = None
    """What the finished run is measured by, if not by its held-out loss."""
    limit: Limit | None = None
    """What it is stopped by halfway, if at all."""

    def to_json(self) -> str:
        return json.dumps(
            {
                "run": self.run.run_id,
                "config": self.run.config.model_dump(mode="json"),
                "directory": str(self.directory),
                "trunk": str(self.trunk) if self.trunk else None,
                "target": self.target.model_dump(mode="json") if self.target else None,
                "limit": asdict(self.limit) if self.limit else None,
            }
        )


@dataclass(frozen=True)
class Event:
    """Something that happened: "started", "progress" (`step`), "ended" (`state`, `error`), "died", "warning"."""

    kind: str
    run_id: str
    step: int = 0
    state: str = ""
    error: str = ""


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    task: Task | None = None


@dataclass
class LocalPool:
    """`workers` processes of one or more CPU threads each, kept from call to call (importing torch takes seconds)."""

    workers: int
    _alive: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._alive:
            worker.process.kill()
            worker.process.wait()
        self._alive.clear()

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Trains all `tasks`, the first ones first; yields what happens, an "ended" for each task among it.

        A run whose worker dies is given to a new worker, which resumes it; after the third death it counts as failed.
        """
        waiting = deque(tasks)
        deaths: dict[str, int] = {}
        while len(self._alive) < min(self.workers, len(tasks)):
            self._alive.append(self._start())
        with selectors.DefaultSelector() as selector:
            for worker in self._alive:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                yield from self._give(worker, waiting)
            while any(worker.task for worker in self._alive):
                for key, _ in selector.select():
                    worker = key.data
                    line = worker.process.stdout.readline()
                    if line.endswith("\n"):
                        yield from self._heard(worker, json.loads(line), waiting)
                        continue
                    selector.unregister(worker.process.stdout)
                    self._alive.remove(worker)
                    yield from self._died(worker, waiting, deaths)
                    if waiting:
                        replacement = self._start()
                        self._alive.append(replacement)
                        selector.register(replacement.process.stdout, selectors.EVENT_READ, replacement)  # type: ignore[arg-type]
                        yield from self._give(replacement, waiting)

    def _start(self) -> _Worker:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "isoflop.study.worker"]
        pipe = subprocess.PIPE
        return _Worker(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))

    def _give(self, worker: _Worker, waiting: deque[Task]) -> Iterator[Event]:
        worker.task = waiting.popleft() if waiting else None
        if worker.task is None:
            return
        assert worker.process.stdin
        try:
            worker.process.stdin.write(worker.task.to_json() + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it has just died; its closed output says so next
        yield Event("started", worker.task.run.run_id)

    def _heard(self, worker: _Worker, message: dict[str, Any], waiting: deque[Task]) -> Iterator[Event]:
        if message["event"] == "warning":
            yield Event("warning", worker.task.run.run_id if worker.task else "", error=message["message"])
        elif message["event"] == "progress":
            yield Event("progress", message["run"], step=message["step"])
        else:
            yield Event("ended", message["run"], state=message["state"], error=message["error"])
            yield from self._give(worker, waiting)

    def _died(self, worker: _Worker, waiting: deque[Task], deaths: dict[str, int]) -> Iterator[Event]:
        code = worker.process.wait()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if worker.task is None:
            return
        run_id = worker.task.run.run_id
        deaths[run_id] = deaths.get(run_id, 0) + 1
        if deaths[run_id] < MAX_DEATHS:
            yield Event("died", run_id, error=f"its worker process was {cause}; resuming it in a new one")
            waiting.appendleft(worker.task)
        else:
            error = f"its worker process was {cause}, for the {MAX_DEATHS}rd time"
            yield Event("ended", run_id, state="failed", error=error)
