"""A worker of a study that kills itself once it has told of a step.

`mortal.py DEATHS` for the local pool, `mortal.py DEATHS BUNDLE MAIL` as a job on a cluster. DEATHS is a folder with a
file for each death that is still to come; its text is the run at which it comes, or nothing for any.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from isoflop.study.executors import remote, worker


def deaths_in(folder: Path, *runs: str) -> Path:
    """A folder of deaths at these runs."""
    folder.mkdir()
    for number, run in enumerate(runs):
        (folder / str(number)).write_text(run)
    return folder


def main(deaths: Path, *job: str) -> None:
    train_task = worker.train_task

    def mortal(task: Any, send: Any, **more: Any) -> None:
        def tell(message: dict[str, Any]) -> None:
            send(message)
            if message["event"] == "progress":
                for death in deaths.iterdir():
                    if death.read_text() in ("", message["run"]):
                        death.unlink()
                        os.kill(os.getpid(), signal.SIGKILL)

        train_task(task, tell, **more)

    worker.train_task = remote.train_task = mortal
    if job:
        remote.serve(job[0], Path(job[1]))
    else:
        worker.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
