"""The executor of a configuration."""

from __future__ import annotations

from collections.abc import Callable

from isoflop.config import StudyConfig
from isoflop.study.executors.local import LocalPool
from isoflop.study.executors.task import Executor


def make_executor(config: StudyConfig, stop: Callable[[], bool] = lambda: False) -> Executor:
    """The executor that `study.executor` names, ready to be entered. Once `stop` says yes, it ends what it trains.

    Raises StudyError when its package is not installed or its cluster does not answer.
    """
    if config.study.executor == "ray":
        from isoflop.study.executors.ray import RayExecutor

        return RayExecutor(config, stop)
    if config.study.executor == "slurm":
        from isoflop.study.executors.slurm import SlurmExecutor

        return SlurmExecutor(config, stop)
    return LocalPool(config.study.workers, stop=stop)
