"""The journal of a run: measurements by step, over all attempts.

Each attempt appends JSON lines to its own files (`attempts/3/metrics-0001.jsonl`). An attempt that begins at step s
replaces all rows of earlier attempts after step s, which no checkpoint has committed. So does a row of a rollback to
step s (train/guards.py).

Every line ends with a checksum, `"crc": "1a2b3c4d"`, of the text before it; journals of earlier versions have none. An
incomplete last line of an attempt was cut off by a kill and is ignored. Any other line with a wrong checksum is
damaged: its row is missing, later rows count, and the reader reports the line.

Every row has the ledger of its samples: `step` is the number of steps consumed, `since` the step of the previous row,
and `samples` a hash chained over the (epoch, index) pairs of every batch that the model received since step 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import CheckpointError
from isoflop.runs.files import make_folder, sync

ROWS_PER_FILE = 100_000
GOES_BACK = ("start", "rollback")  # rows that take back what was said of later steps
CRC = b', "crc": "%08x"}'
Row = dict[str, Any]


class DamagedRow(NamedTuple):
    """A line of a journal that is not as it was written. `after` is the last step before it that has a row."""

    file: Path
    line: int
    after: int


class Journal(list[Row]):
    """The rows of a run, one a step, as an uninterrupted run would have written them.

    `damaged` are the lines that could not be read, but for those that a later attempt has replaced. `begins` is the
    step up to which the run took its steps from a trunk, and has no rows. `restarts` are the images seen at each step
    to which the run went back: after a kill, or by its guards.
    """

    damaged: tuple[DamagedRow, ...] = ()
    begins: int = 0
    restarts: tuple[int, ...] = ()


def chain_samples(previous: str, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> str:
    """The ledger's hash after one more batch: equal chains mean the same samples in the same order since step 0."""
    digest = hashlib.blake2b(previous.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(epochs).tobytes())
    digest.update(np.ascontiguousarray(indices).tobytes())
    return digest.hexdigest()


def encode_row(row: Row) -> bytes:
    """The line of a journal that holds `row`."""
    text = json.dumps(row).encode()[:-1]
    return text + CRC % zlib.crc32(text) + b"\n"


class JournalWriter:
    """Appends the rows of one attempt. `start` is the step at which the attempt begins, `more` what its first row says
    beside it.

    Rows that the storage refuses are kept and written when it accepts again; `sync` and `close` raise OSError, which
    names the file, if it does not.
    """

    def __init__(self, directory: Path, start: int, origin: str, **more: Any) -> None:
        attempts = directory / "attempts"
        make_folder(attempts)
        number = 1 + max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
        self._folder = attempts / str(number)
        make_folder(self._folder)
        self._rows, self._size = 0, 0
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()  # checkpoints are committed by a thread of their own
        self._file = self._open(1)
        self.write({"kind": "start", "step": start, "origin": origin, **more})

    def _open(self, number: int) -> Any:
        self._size = 0
        self._path = self._folder / f"metrics-{number:04d}.jsonl"
        file = self._path.open("wb", buffering=0)
        sync(self._folder)
        return file

    def write(self, row: Row) -> None:
        """Appends `row`; it reaches the operating system before this returns, so that a kill cannot lose it."""
        with self._lock:
            self._waiting.append(encode_row(row))
            try:
                self._flush()
            except OSError as error:
                if len(self._waiting) == 1:
                    told = f"{self._path}: the journal cannot be written: {error.strerror}; its rows are kept in memory"
                    warnings.warn(told, stacklevel=2)

    def _flush(self) -> None:
        while self._waiting:
            if self._rows and self._rows % ROWS_PER_FILE == 0 and self._size:
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = self._open(1 + self._rows // ROWS_PER_FILE)
            line = self._waiting[0]
            written = 0
            try:
                while written < len(line):
                    written += self._file.write(line[written:])
            except OSError:
                os.ftruncate(self._file.fileno(), self._size)  # no half of a line
                self._file.seek(self._size)
                raise
            self._size += len(line)
            self._rows += 1
            self._waiting.pop(0)

    def sync(self) -> None:
        """Returns when every row has reached the disk: what relies on them is committed after it."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self._flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                error.filename = str(self._path)
                raise

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._file.close()


def read_attempts(directory: Path, damaged: Callable[[Path, int], None]) -> Iterator[Iterator[Row]]:
    """The rows of each attempt in `directory`, first attempt first, a file in memory at a time.

    `damaged` is called with file and number of a line that is not as it was written, in its place among the rows.
    """
    folder = directory / "attempts"
    if not folder.is_dir():
        return
    for attempt in sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        yield _rows(sorted(attempt.glob("metrics-*.jsonl")), damaged)


def _rows(files: Sequence[Path], damaged: Callable[[Path, int], None]) -> Iterator[Row]:
    for file in files:
        *lines, rest = file.read_bytes().split(b"\n")
        checked = any(map(_is_checked, lines))  # one flipped bit cannot make a file look as if it had no checksums
        for number, line in enumerate(lines, start=1):
            row = decode_row(line, checked=checked)
            if row is not None:
                yield row
            else:
                damaged(file, number)
        if rest:  # a line without its end: torn, or it is the end alone that is damaged
            row = decode_row(rest, checked=checked) or decode_row(rest[:-1], checked=checked)
            if row is not None:
                yield row
            elif file != files[-1]:
                damaged(file, len(lines) + 1)


def decode_row(line: bytes, *, checked: bool = False) -> Row | None:
    """The row in a line of a journal; None for what is none: torn, damaged, or no words of ours. Where it must be
    `checked`, a line without a checksum is damaged, too."""
    if checked or _is_checked(line):
        text = line[: -len(CRC % 0)]
        if line[len(text) :] != CRC % zlib.crc32(text):
            return None
        line = text + b"}"
    try:
        row = json.loads(line.decode())  # of bytes, json would guess the encoding
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or not isinstance(row.get("step"), int):
        return None
    whole = row["kind"] in GOES_BACK or (
        isinstance(row.get("images"), int) and isinstance(row.get("loss"), float | int)
    )
    return row if whole else None


def _is_checked(line: bytes) -> bool:
    return line[-20:-10] == CRC[:10]


def attempts(directory: Path) -> Iterator[list[Row]]:
    """The rows of each attempt in `directory`, first attempt first, without those that are damaged."""
    for rows in read_attempts(directory, lambda file, line: None):
        yield list(rows)


def read_journal(directory: Path) -> Journal:
    """The journal of the run in `directory`. Damaged lines are told by a warning, and leave a hole in the ledger."""
    journal = Journal()
    damages: list[DamagedRow] = []

    def last() -> int:
        return journal[-1]["step"] if journal else journal.begins

    def go_back(step: int) -> None:
        while journal and journal[-1]["step"] > step:
            journal.pop()
        damages[:] = [damage for damage in damages if damage.after < step]

    for rows in read_attempts(directory, lambda file, line: damages.append(DamagedRow(file, line, last()))):
        for row in rows:
            if row["kind"] in GOES_BACK:
                go_back(row["step"])
                if journal:
                    journal.restarts += (journal[-1]["images"],)
                if not journal and (row["step"] == 0 or row.get("origin") == "trunk"):
                    journal.begins = row["step"]
                continue
            since = row.get("since")
            if isinstance(since, int) and since < last():  # the row that told of it is damaged
                before = [damage for damage in damages if damage.after == last()]
                go_back(since)
                damages.extend(before)
            journal.append(row)
    journal.damaged = tuple(damages)
    for file in dict.fromkeys(damage.file for damage in damages):
        _warn(file, [damage.line for damage in damages if damage.file == file])
    return journal


def warn_of_damage(directory: Path) -> None:
    """Warns of each file of the journal that has damaged lines. A run goes on without them: they are no part of its
    state, and their rows stay missing."""
    found: dict[Path, list[int]] = {}
    for rows in read_attempts(directory, lambda file, line: found.setdefault(file, []).append(line)):
        for _ in rows:
            pass
    for file, lines in found.items():
        _warn(file, lines)


def _warn(file: Path, lines: Sequence[int]) -> None:
    named = ", ".join(map(str, lines[:5])) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
    warnings.warn(f"{file}: damaged: line {named} is not as it was written, and its row is missing", stacklevel=3)


def data_steps(steps: int, skipped: Iterable[Sequence[int]]) -> Iterator[int]:
    """The step of the sample order that each of `steps` optimizer steps took its samples from.

    `skipped` are [step, count] as in the run's state: before that step, so many steps of samples were passed over.
    """
    jumps: dict[int, int] = {}
    for step, count in skipped:
        jumps[step] = jumps.get(step, 0) + count
    offset = 0
    for step in range(steps):
        offset += jumps.get(step, 0)
        yield step + offset


def verify_ledger(
    rows: list[Row], order: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], steps: int | None = None
) -> int:
    """The number of steps whose samples were proved to be the ones of the pure order, none missing, none twice.

    Args:
        rows: what `read_journal` returns.
        order: (epochs, indices) of each step from step 0 on, as `isoflop.data` says they must be.
        steps: how many steps the run has trained, where that is known (its status, its checkpoint).

    Raises CheckpointError at the first hole, overlap or difference, and where rows are missing: at the beginning, at
    the end, or all of them.
    """
    trained = iter(order)
    train = [row for row in rows if row["kind"] == "train"]
    damaged = rows.damaged if isinstance(rows, Journal) else ()
    begins = rows.begins if isinstance(rows, Journal) else 0
    if not train and steps != 0:
        raise CheckpointError("the ledger has no rows: the consumed samples are unknown")
    verified, chain, before = 0, "", begins
    for number, row in enumerate(train):
        if row["since"] != before and (number or row["since"] > before):
            raise CheckpointError(
                f"the ledger goes from step {before} to {row['since']}: rows are missing, samples missed or repeated"
            )
        before = row["step"]
        while verified < row["step"]:
            batch = next(trained, None)
            if batch is None:
                raise CheckpointError(f"the ledger goes to step {row['step']}, the order of samples to {verified}")
            chain = chain_samples(chain, *batch)
            verified += 1
        if chain != row["samples"]:
            raise CheckpointError(f"steps {row['since']} to {row['step']} consumed other samples than the sample order")
    if late := [damage for damage in damaged if damage.after >= before]:
        raise CheckpointError(f"{late[0].file}: line {late[0].line} is damaged: the ledger ends at step {before}")
    if steps is not None and before != steps:
        raise CheckpointError(f"the ledger ends at step {before} of {steps}: rows are missing")
    return verified
