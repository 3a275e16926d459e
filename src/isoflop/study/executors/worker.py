"""A worker process of this machine: reads tasks as JSON lines, one after another, and answers in JSON lines.

Started as `python -m isoflop.study.executors.worker`. Every run is idempotent and resumes by itself, so a worker can be
killed at any moment and its run given to another. A worker whose parent is gone ends at its next message.

It says that it is alive every few seconds, whatever its run does; a run that makes no step for `guards.stuck_seconds`
ends the worker. Asked to stop (SIGTERM), it saves a checkpoint of what it trains.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from isoflop.study.executors.training import Message, train_task, warnings_sent
from isoflop.train.preemption import asked_to_stop

ALIVE_SECONDS = 20.0  # between two signs of life


def main() -> None:
    """Serves tasks from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    def say_alive() -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            try:
                send({"event": "alive"})
            except BrokenPipeError:
                os._exit(1)

    threading.Thread(target=say_alive, name="alive", daemon=True).start()
    with warnings_sent(send), asked_to_stop() as stop:
        for line in sys.stdin:
            try:
                train_task(json.loads(line), send, stop=stop)
            except BrokenPipeError:
                os._exit(1)


if __name__ == "__main__":
    main()
