"""The executor of SLURM: bundles of runs as batch jobs, through submitit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.study.executors.remote import optional, serve, train_remotely
from isoflop.study.executors.task import Event, RunTask

BUNDLE_SECONDS = 600.0
JOBS = 16  # at a time, unless `study.workers` says otherwise
SHARED_OPTIONS = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # names that submitit has of its own
RESTARTS = 1000  # by SLURM itself, of a job whose time is up


class SlurmExecutor:
    """Trains runs as jobs of one CPU each, or as `[slurm]` says; `cluster` "local" runs them here, for tests.

    Raises StudyError when submitit is not installed, there is no SLURM, or `[slurm]` asks for what it has not.
    """

    cores = 1

    def __init__(
        self,
        config: StudyConfig,
        stop: Callable[[], bool] = lambda: False,
        *,
        cluster: str = "slurm",
        pause: float = 1.0,
    ) -> None:
        self.stop = stop
        self.submitit = optional("submitit")
        self.pause = pause
        self.folder = config.directory / ".mail"
        self.workers = config.study.workers or JOBS
        options: dict[str, Any] = {"cpus_per_task": 1, "timeout_min": 60, "name": config.study.name}
        options |= {name if name in SHARED_OPTIONS else f"slurm_{name}": v for name, v in config.slurm.items()}
        self.options, self.cluster = options, cluster
        with tempfile.TemporaryDirectory() as nowhere:  # what cannot be is refused before anything is written
            self._executor(Path(nowhere))
        self.logs = config.directory / ".slurm"

    def __enter__(self) -> SlurmExecutor:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to do: `run` has cancelled its jobs."""

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        """See `Executor.run`."""
        executor = self._executor(self.logs)

        def submit(bundle: str, mail: Path) -> _SlurmJob:
            try:
                return _SlurmJob(self.submitit, executor.submit(Serve(), bundle, mail))
            except self.submitit.core.utils.FailedSubmissionError as error:
                raise StudyError(f"SLURM took no job: {' '.join(str(error).split())}") from error

        return train_remotely(
            tasks,
            submit,
            workers=self.workers,
            folder=self.folder,
            bundle_seconds=BUNDLE_SECONDS,
            pause=self.pause,
            stop=self.stop,
        )

    def _executor(self, folder: Path) -> Any:
        try:
            executor = self.submitit.AutoExecutor(folder, cluster=self.cluster, slurm_max_num_timeout=RESTARTS)
            executor.update_parameters(**self.options)
        except RuntimeError as error:
            raise StudyError(f"study.executor = slurm, but there is no SLURM here: {error}") from error
        except (NameError, AssertionError, ValueError) as error:
            raise StudyError(f"[slurm]: {str(error).splitlines()[0]}") from error
        return executor


class Serve:
    """`serve`, which SLURM may interrupt: the job is queued again and goes on from the checkpoints of its runs."""

    def __call__(self, tasks: str, mail: Path) -> None:
        serve(tasks, mail)

    def checkpoint(self, tasks: str, mail: Path) -> Any:
        """What submitit asks for when the job's time is up or it must make room."""
        return optional("submitit").helpers.DelayedSubmission(self, tasks, mail)


class _SlurmJob:
    def __init__(self, submitit: Any, job: Any) -> None:
        self.submitit, self.job = submitit, job

    def ended_as(self) -> str | None:
        """See `Job`."""
        if not self.job.done():
            return None
        utils = self.submitit.core.utils
        try:
            self.job.result()
        except utils.FailedJobError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise StudyError(f"a SLURM job cannot work: {lines[-1]} (job {self.job.job_id})") from error
        except utils.UncompletedJobError:
            return f"lost ({self.job.state}, job {self.job.job_id}, output in {self.job.paths.stderr})"
        return ""

    def cancel(self) -> None:
        """See `Job`."""
        self.job.cancel()
