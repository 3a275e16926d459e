"""A worker process: reads runs as JSON lines, trains them one after another, answers in JSON lines.

Started as `python -m isoflop.study.worker`. Every run is idempotent and resumes by itself, so a worker can be killed at
any moment and its run given to another. A worker whose parent is gone ends at its next message.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Serves tasks from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    warnings.showwarning = lambda message, *_rest, **_more: _send(
        answers, {"event": "warning", "message": str(message)}
    )
    for line in sys.stdin:
        task = json.loads(line)
        try:
            _send(answers, {"event": "ended", "run": task["run"], **_train(task, answers)})
        except BrokenPipeError:
            os._exit(1)


def _train(task: dict[str, Any], answers: TextIO) -> dict[str, Any]:
    from isoflop.config import RunConfig, TransferConfig, parse
    from isoflop.errors import CheckpointError
    from isoflop.train import train
    from isoflop.train.halfway import Limit

    def on_row(row: dict[str, Any]) -> None:
        _send(answers, {"event": "progress", "run": task["run"], "step": row["step"]})

    try:
        trunk = Path(task["trunk"]) if task["trunk"] else None
        limit = Limit(**task["limit"]) if task["limit"] else None
        config, directory = parse(task["config"], RunConfig), Path(task["directory"])
        result = train(config, directory, trunk=trunk, on_row=on_row, limit=limit)
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


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
