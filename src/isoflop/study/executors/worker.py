"""A worker process of this machine: reads tasks as JSON lines and answers in JSON lines.

The executor of one machine has `serve` start it. Every run is idempotent and resumable, so a worker can be
killed at any moment and another one continues its run. A worker whose parent is dead exits at its next message.

It sends a heartbeat every few seconds. A run that makes no step for `guards.stuck_seconds` ends the worker. On SIGTERM
it saves a checkpoint of its run.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from isoflop.config import RunConfig, TransferConfig, parse
from isoflop.errors import CheckpointError, DataNotice, MachineNotice
from isoflop.runs.files import read_json, write_json
from isoflop.train.guards import SIGNALS, asked_to_stop

# What a worker does with a task, wherever it runs: it trains, and says what happens.


Message = dict[str, Any]
Send = Callable[[Message], None]


def train_task(task: Message, send: Send, *, patience: float = 0.0, stop: Callable[[], bool] = lambda: False) -> None:
    """Trains the run of `task` (`RunTask.to_json`), or goes on with it; `send` gets what happens, an "ended" at last.

    `patience` is for how many seconds a worker that is thought dead may still hold a run's folder. Once `stop` says
    yes, the run saves a checkpoint and ends as "preempted". Only the failure of `send` itself (BrokenPipeError) is
    raised.
    """
    send({"event": "started", "run": task["run"]})
    send({"event": "ended", "run": task["run"], **_outcome(task, send, patience, stop)})


def _outcome(task: Message, send: Send, patience: float, stop: Callable[[], bool]) -> dict[str, str]:
    from isoflop.train import train

    def on_row(row: dict[str, Any]) -> None:
        send({"event": "progress", "run": task["run"], "step": row["step"], "phase": row.get("phase", "")})

    try:
        trunk = Path(task["trunk"]) if task["trunk"] else None
        config, directory = parse(task["config"], RunConfig), Path(task["directory"])
        _wait_until_free(directory, patience)
        result = train(
            config,
            directory,
            trunk=trunk,
            on_row=on_row,
            stop=stop,
            ends_when_stuck=True,
        )
        if task["target"] and result.state == "done":
            measure_target(directory, parse(task["target"], TransferConfig))
    except BrokenPipeError:
        raise
    except CheckpointError as error:  # the storage: no other run would fare better
        return {"state": "storage", "error": str(error)}
    except Exception as error:
        return {"state": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return {"state": result.state, "error": result.error}


def _wait_until_free(directory: Path, patience: float) -> None:
    """Returns when nobody writes in `directory`, at the latest after `patience` seconds."""
    from isoflop.runs.lock import sole_writer

    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            with sole_writer(directory, CheckpointError):
                return
        except CheckpointError:
            time.sleep(0.5)


@contextmanager
def warnings_sent(send: Send) -> Iterator[None]:
    """Meanwhile, warnings are messages. What a data set leaves out and what the machine is slow at, the study has said
    when it was planned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        warnings.simplefilter("ignore", MachineNotice)
        warnings.showwarning = lambda message, *_rest, **_more: send({"event": "warning", "message": str(message)})
        yield


REQUEST = struct.Struct("q")
"""What the executor asks `serve`: 0, with two pipes, for a new worker; the number of a worker, to wait for its end. And
the answer: the number of the worker, or its exit code."""

PRELOADED = ("isoflop.train", "torch._dynamo", "pyarrow.dataset")
"""What a run imports: all but a few hundredths of a second"""


def serve() -> None:
    """Starts workers as copies of this process, as the socket that is its standard input asks, until that closes.

    The import of PyTorch is then paid once. Signals are for the executor to interpret, and for the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a worker hears of what comes before it can handle it
    with socket.socket(fileno=os.dup(0)) as asked:
        for name in PRELOADED:
            import_module(name)
        gc.freeze()  # what is here is garbage in no worker, and its memory stays shared
        while True:
            try:
                request, pipes, _, _ = socket.recv_fds(asked, REQUEST.size, 2)
            except ConnectionResetError:
                return
            if len(request) < REQUEST.size:
                return
            (pid,) = REQUEST.unpack(request)
            if pid:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            else:
                answer = os.fork()
                if not answer:
                    break
                for pipe in pipes:
                    os.close(pipe)
            try:
                asked.sendall(REQUEST.pack(answer))
            except (BrokenPipeError, ConnectionResetError):
                return
    for number, pipe in enumerate(pipes):
        os.dup2(pipe, number)
        os.close(pipe)
    main()


ALIVE_SECONDS = 20.0  # between two signs of life


def main() -> None:
    """Serves tasks from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    def say_alive() -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            try:
                send({"event": "alive"})
            except BrokenPipeError:
                os._exit(1)

    threading.Thread(target=say_alive, name="alive", daemon=True).start()
    with warnings_sent(send), asked_to_stop() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for line in sys.stdin:
            try:
                train_task(json.loads(line), send, stop=stop)
            except BrokenPipeError:
                os._exit(1)


# The number by which the runs of a study are judged, measured on a finished run and kept in its folder.


FILE = "target.json"


def measure_target(directory: Path, protocol: TransferConfig) -> None:
    """Writes the error (1 - accuracy) of the finished run in `directory` under `protocol` into its `target.json`.

    An error of nothing stands for half a wrong answer, for laws are fitted to its logarithm.
    """
    from isoflop.transfer import open_backbone, transfer

    (row,) = transfer(open_backbone(directory), protocol, folder=directory / "transfer")
    error = max(1.0 - row["accuracy_mean"], 0.5 / row["test_images"])
    found = {"protocol": protocol.model_dump(mode="json"), "error": error, "row": row}
    write_json(directory / FILE, found)


def read_target(directory: Path, protocol: TransferConfig) -> dict[str, Any] | None:
    """What `measure_target` found, or None where it has not yet, or under another protocol."""
    try:
        found = read_json(directory / FILE, {"protocol": dict, "error": float})
    except CheckpointError:
        return None
    return found if found["protocol"] == protocol.model_dump(mode="json") else None
