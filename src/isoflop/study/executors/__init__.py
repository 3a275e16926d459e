"""Executors train the runs of a study: in processes of this machine, as tasks of a Ray cluster, or as jobs of SLURM."""

from isoflop.study.executors.choose import make_executor
from isoflop.study.executors.local import LocalPool
from isoflop.study.executors.task import Event, Executor, RunTask

__all__ = ["Event", "Executor", "LocalPool", "RunTask", "make_executor"]
