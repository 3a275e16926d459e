"""What a worker on another machine says: JSON lines in a file on the storage that all machines share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from isoflop.study.executors.training import Message


class Sender:
    """Appends messages to the file `path`; a worker that was started again goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._file.write("\n")  # the last worker's last line may be torn

    def __call__(self, message: Message) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()


class Mailbox:
    """Reads what has been written to the file `path`, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def news(self) -> Iterator[Message]:
        """The messages since the last call; what is not a whole line of JSON is passed over or comes later."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue
