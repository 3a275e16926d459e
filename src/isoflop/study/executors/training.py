"""What a worker does with a task, wherever it runs: it trains, and says what happens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isoflop.errors import DataNotice

Message = dict[str, Any]
Send = Callable[[Message], None]


def train_task(task: Message, send: Send, *, patience: float = 0.0, stop: Callable[[], bool] = lambda: False) -> None:
    """Trains the run of `task` (`Task.to_json`), or goes on with it; `send` gets what happens, an "ended" at last.

    `patience` is for how many seconds a worker that is thought dead may still hold a run's folder. Once `stop` says
    yes, the run saves a checkpoint and ends as "preempted". Only the failure of `send` itself (BrokenPipeError) is
    raised.
    """
    send({"event": "started", "run": task["run"]})
    send({"event": "ended", "run": task["run"], **_outcome(task, send, patience, stop)})


def _outcome(task: Message, send: Send, patience: float, stop: Callable[[], bool]) -> dict[str, str]:
    from isoflop.config import RunConfig, TransferConfig, parse
    from isoflop.errors import CheckpointError
    from isoflop.train import train

    def on_row(row: dict[str, Any]) -> None:
        send({"event": "progress", "run": task["run"], "step": row["step"]})

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
