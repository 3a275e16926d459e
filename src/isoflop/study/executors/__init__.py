"""Who trains the runs of a study: processes of this machine, tasks of a Ray cluster, or jobs of SLURM."""

from isoflop.study.executors.choose import make_executor
from isoflop.study.executors.local import LocalPool
from isoflop.study.executors.task import Event, Executor, RunTask

__all__ = ["Event", "Executor", "LocalPool", "RunTask", "make_executor"]
