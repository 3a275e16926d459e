"""An executor that trains in this process: a worker would import PyTorch first, and few tests are about workers."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from isoflop.study.executors import Event, Task
from isoflop.study.executors.task import loads
from isoflop.study.executors.training import Message, train_load


class Here:
    """Trains one load of tasks after another, as a pool of two workers would share them out."""

    workers = 2

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: Any) -> None: ...

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        for load in loads(tasks):
            told: list[Message] = []
            train_load([task.to_json() for task in load], told.append)
            yield from (Event.from_message(message, load[0].run.run_id) for message in told)
