"""The executor of one machine: worker processes that train runs in parallel.

A worker sends a heartbeat every 20 seconds. A worker without one (it was stopped, or hangs in the kernel) is reported
after two minutes. After ten minutes it is killed, and another worker resumes its run.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from isoflop.errors import StudyError
from isoflop.study.executors.task import Event, RunTask, after_death
from isoflop.study.executors.worker import REQUEST
from isoflop.train.device import usable_cores
from isoflop.train.ranks import LAUNCHED

SILENT_SECONDS = 120.0  # without a sign of life from a worker, after which it is named
PATIENCE_SECONDS = 600.0  # after which it is killed, and its run goes on in another
STOP_SECONDS = 600.0  # that workers get to save what they train, once they are asked to stop
POLL_SECONDS = 1.0


class _ForkServer:
    """A process that has imported what a run needs, which takes seconds. Each worker is a copy of it.

    It starts no threads and touches no GPU, so that it can be copied at any time. What is asked of it, through a socket
    that is its standard input, is answered at once: `worker.serve`. It ends when this process does.
    """

    def __init__(self) -> None:
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        environment = {**alone, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from isoflop.study.executors.worker import serve; serve()"]
        self.socket, theirs = socket.socketpair()
        with theirs:
            null = subprocess.DEVNULL
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=null, env=environment)

    def start(self) -> _Process:
        """A new worker. Raises OSError where the server is gone."""
        (read, write), (out, told) = os.pipe(), os.pipe()
        stdin, stdout = os.fdopen(write, "wb"), os.fdopen(out, "rb", buffering=0)
        try:
            socket.send_fds(self.socket, [REQUEST.pack(0)], [read, told])
            return _Process(self._answer(), stdin, stdout, self)
        except OSError:
            stdin.close()
            stdout.close()
            raise
        finally:
            os.close(read)
            os.close(told)

    def wait(self, pid: int) -> int | None:
        """Waits until a worker has ended; its exit code as `subprocess` has it, None where the server is gone."""
        try:
            self.socket.sendall(REQUEST.pack(pid))
            return self._answer()
        except OSError:
            return None

    def _answer(self) -> int:
        answer = self.socket.recv(REQUEST.size, socket.MSG_WAITALL)  # the first one comes after the imports
        if len(answer) < REQUEST.size:
            raise ConnectionResetError(errno.ECONNRESET, "the process that starts workers is gone")
        return int(REQUEST.unpack(answer)[0])

    def close(self) -> int:
        """Ends the server; its exit code."""
        self.socket.close()
        return self.process.wait()


@dataclass
class _Process:
    pid: int
    stdin: BinaryIO
    stdout: BinaryIO
    server: _ForkServer

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)  # nobody else has this number before the server is asked to wait for it

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int | None:
        """See `_ForkServer.wait`. To be called once."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()
        return self.server.wait(self.pid)


@dataclass
class _Worker:
    process: _Process
    heard_at: float  # when it last said something
    is_named: bool = False  # whether its silence was told
    task: RunTask | None = None  # what it is at
    cut: bytes = b""  # the beginning of a line whose end has not come

    def lines(self) -> list[bytes] | None:
        """What it has said since; None where it is dead. To be called when its output is ready.

        Read without a buffer of Python's: no selector announces a line that waits in one, and a run's last step and its
        end are told in one breath.
        """
        found = os.read(self.process.stdout.fileno(), 1 << 16)
        *whole, self.cut = (self.cut + found).split(b"\n")
        return whole if found else None


class LocalPool:
    """Processes of one CPU thread each, kept from run to run and from call to call, all copies of one.

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
        self.workers = self.cores = workers or usable_cores()
        self._stop = stop
        self._clock = clock
        self._stopped_at: float | None = None
        self._alive: list[_Worker] = []
        self._server: _ForkServer | None = None

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._alive:
            worker.process.kill()
            worker.process.wait()
        self._alive.clear()
        if self._server:
            self._server.close()
            self._server = None

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        """See `Executor.run`."""
        waiting = deque(tasks)
        deaths: Counter[str] = Counter()
        while len(self._alive) < min(self.workers, len(waiting)):
            self._alive.append(self._start())
        with selectors.DefaultSelector() as selector:
            for worker in self._alive:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
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
                        selector.register(replacement.process.stdout, selectors.EVENT_READ, replacement)
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
        """A new worker, of a new server where the one before was killed. Raises StudyError where none can start."""
        for _ in range(2):
            self._server = self._server or _ForkServer()
            try:
                return _Worker(self._server.start(), self._clock())
            except OSError as error:
                code, self._server, why = self._server.close(), None, error
        raise StudyError(f"no worker process can be started (exit code {code}): {why.strerror}")

    def _give(self, worker: _Worker, waiting: deque[RunTask]) -> None:
        worker.task = waiting.popleft() if waiting else None
        worker.heard_at, worker.is_named = self._clock(), False
        if not worker.task:
            return
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
                worker.process.stdin.close()
                event = after_death(task, deaths, "asked to stop")
                if event.kind == "died":
                    waiting.appendleft(task)
            else:
                self._give(worker, waiting)
        yield event

    def _died(self, worker: _Worker, waiting: deque[RunTask], deaths: Counter[str]) -> Iterator[Event]:
        code = worker.process.wait()
        cause = "lost, with the process that had started it" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            cause = f"killed by {signal.Signals(-code).name}"
        if not worker.task:
            return
        event = after_death(worker.task, deaths, cause)
        if event.kind == "died":
            waiting.appendleft(worker.task)
        yield event
