"""The executor of an existing Ray cluster: bundles of runs as Ray core tasks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.study.executors.remote import optional, serve, train_remotely
from isoflop.study.executors.task import Event, RunTask

BUNDLE_SECONDS = 30.0
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 30.0


class RayExecutor:
    """Trains runs as tasks of one CPU, or of a share of a GPU where the cluster has GPUs and the study may use them.

    Connects when it is made, to `study.address`, RAY_ADDRESS, or the cluster of this machine; a connection that the
    process has already is used and kept. Raises StudyError when Ray is not installed or no cluster answers.
    """

    cores = 1

    def __init__(self, config: StudyConfig, stop: Callable[[], bool] = lambda: False) -> None:
        self.stop = stop
        self.ray = ray = optional("ray")
        self.folder = config.directory / ".mail"
        self.connected_before = bool(ray.is_initialized())
        if not self.connected_before:
            _connect(ray, config.study.address or os.environ.get("RAY_ADDRESS") or "auto")
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0.0) if config.device in ("auto", "cuda") else 0.0
        if config.device == "cuda" and not gpus:
            self._leave()
            raise StudyError("device = cuda, but the Ray cluster has no GPU: use device = auto or cpu")
        share = 1 / config.study.runs_per_gpu if gpus else 0.0
        room = gpus / share if gpus else resources.get("CPU", 1.0)
        self.workers = config.study.workers or max(1, int(room))
        # We start lost tasks again ourselves: Ray would not tell a run that kills its worker from a lost node.
        self.task = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(serve)

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_error: object) -> None:
        self._leave()

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        """See `Executor.run`."""
        return train_remotely(
            tasks,
            self._submit,
            workers=self.workers,
            folder=self.folder,
            bundle_seconds=BUNDLE_SECONDS,
            pause=0.1,
            stop=self.stop,
        )

    def _submit(self, tasks: str, mail: Path) -> _RayJob:
        return _RayJob(self.ray, self.task.remote(tasks, mail))

    def _leave(self) -> None:
        if not self.connected_before:
            self.ray.shutdown()


class _RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def ended_as(self) -> str | None:
        """See `Job`."""
        errors = self.ray.exceptions
        ended, _ = self.ray.wait([self.reference], timeout=0)
        if not ended:
            return None
        try:
            self.ray.get(self.reference)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            raise StudyError(f"a Ray task cannot work: {_last_line(error)}") from error
        except errors.RayError as error:
            return f"lost ({type(error).__name__})"
        return ""

    def cancel(self) -> None:
        """See `Job`."""
        self.ray.cancel(self.reference, force=True)


def _connect(ray: Any, address: str) -> None:
    """Joins the cluster at `address`. Ray itself would try for minutes where nobody answers: so ask first."""
    said = f"the Ray cluster at {address} does not answer" if address != "auto" else "no Ray cluster on this machine"
    advice = "start one with `ray start --head`, or give its address by --address HOST:PORT or RAY_ADDRESS"
    problem = StudyError(f"{said}: {advice}")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise problem from error
    if not address.startswith("ray://"):
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
        command += [] if address == "auto" else ["--address", address]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=ANSWER_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise problem from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(f"{said}: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
