"""An executor that trains in this process: a worker would import PyTorch first, and few tests are about workers."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from isoflop.study.executors import Event, RunTask
from isoflop.study.executors.worker import Message, train_task


class Here:
    """Trains one task after another, as a pool of two workers would share them out."""

    workers = cores = 2

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: Any) -> None: ...

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        for task in tasks:
            told: list[Message] = []
            train_task(task.to_json(), told.append)
            yield from (Event.from_message(message, task.run.run_id) for message in told)
