"""A worker process of this machine: reads loads of tasks as JSON lines, one after another, and answers in JSON lines.

Started as `python -m isoflop.study.executors.worker`. Every run is idempotent and resumes by itself, so a worker can be
killed at any moment and its run given to another. A worker whose parent is gone ends at its next message.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from isoflop.study.executors.training import Message, train_load, warnings_sent


def main() -> None:
    """Serves tasks from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up among the answers

    def send(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with warnings_sent(send):
        for line in sys.stdin:
            try:
                train_load(json.loads(line), send)
            except BrokenPipeError:
                os._exit(1)


if __name__ == "__main__":
    main()
