"""What a worker does with a task, wherever it runs: it trains, and says what happens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import DataNotice

if TYPE_CHECKING:
    from isoflop.train.stacked import Seat

Message = dict[str, Any]
Send = Callable[[Message], None]


def train_load(
    tasks: Sequence[Message], send: Send, *, patience: float = 0.0, stop: Callable[[], bool] = lambda: False
) -> None:
    """Trains the runs of `tasks` (`Task.to_json`), one alone or those of a pack together, or goes on with them; `send`
    gets what happens, an "ended" for each.

    `patience` is for how many seconds a worker that is thought dead may still hold a run's folder. Once `stop` says
    yes, runs save a checkpoint and end as "preempted". Only the failure of `send` itself (BrokenPipeError) is raised.
    """
    if len(tasks) == 1 and not tasks[0]["pack"]:
        _train(tasks[0], send, patience, stop)
        return
    from isoflop.train.stacked import Stack

    stack = Stack(tasks[0]["pack"]["size"], [task["pack"]["place"] for task in tasks])

    def train_seated(task: Message) -> None:
        with stack.seat(task["pack"]["place"]) as seat:
            _train(task, send, patience, stop, seat)

    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(train_seated, task) for task in tasks]:
            future.result()


def _train(task: Message, send: Send, patience: float, stop: Callable[[], bool], seat: Seat | None = None) -> None:
    send({"event": "started", "run": task["run"]})
    send({"event": "ended", "run": task["run"], **_outcome(task, send, patience, stop, seat)})


def _outcome(task: Message, send: Send, patience: float, stop: Callable[[], bool], seat: Seat | None) -> dict[str, str]:
    from isoflop.config import RunConfig, TransferConfig, parse
    from isoflop.errors import CheckpointError
    from isoflop.train import train
    from isoflop.train.halfway import Limit

    def on_row(row: dict[str, Any]) -> None:
        send({"event": "progress", "run": task["run"], "step": row["step"]})

    try:
        trunk = Path(task["trunk"]) if task["trunk"] else None
        limit = Limit(**task["limit"]) if task["limit"] else None
        config, directory = parse(task["config"], RunConfig), Path(task["directory"])
        _wait_until_free(directory, patience)
        result = train(
            config,
            directory,
            trunk=trunk,
            on_row=on_row,
            stop=stop,
            limit=limit,
            seat=seat,
            ends_when_stuck=True,
        )
        if task["target"] and result.state == "done":
            from isoflop.study.target import measure_target

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
    from isoflop.errors import CheckpointError
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
    """Meanwhile, warnings are messages. What a data set leaves out, the study has said when it was planned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        warnings.showwarning = lambda message, *_rest, **_more: send({"event": "warning", "message": str(message)})
        yield
