"""The journal of a run: what was measured at which step, over all attempts.

Each attempt appends JSON lines to files of its own (`attempts/3/metrics-0001.jsonl`) and never touches another's. An
attempt that begins at step s replaces all that earlier attempts said about steps after s: they were not committed by a
checkpoint and have been trained again. So does a row that tells of a rollback to step s (train/guards.py). A line torn
by a kill is the last of its file and is ignored.

Every row carries the ledger of its samples: `step` is the number of steps consumed, `since` the step of the row before,
and `samples` a hash chained over the (epoch, index) pairs of every batch that was really fed to the model since step 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import CheckpointError

ROWS_PER_FILE = 100_000
GOES_BACK = ("start", "rollback")  # rows that take back what was said of later steps
Row = dict[str, Any]


def chain_samples(previous: str, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> str:
    """The ledger's hash after one more batch: equal chains mean the same samples in the same order since step 0."""
    digest = hashlib.blake2b(previous.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(epochs).tobytes())
    digest.update(np.ascontiguousarray(indices).tobytes())
    return digest.hexdigest()


class JournalWriter:
    """Appends the rows of one attempt. `start` is the step at which the attempt begins.

    Rows that the storage refuses are kept and written when it accepts again; `close` raises OSError if it never does.
    """

    def __init__(self, directory: Path, start: int, origin: str) -> None:
        attempts = directory / "attempts"
        attempts.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
        self._folder = attempts / str(number)
        self._folder.mkdir()
        self._rows, self._size = 0, 0
        self._waiting: list[bytes] = []
        self._file = self._open(1)
        self.write({"kind": "start", "step": start, "origin": origin})

    def _open(self, number: int) -> Any:
        self._size = 0
        return (self._folder / f"metrics-{number:04d}.jsonl").open("wb", buffering=0)

    def write(self, row: Row) -> None:
        """Appends `row`; it reaches the operating system before this returns, so that a kill cannot lose it."""
        self._waiting.append(json.dumps(row).encode() + b"\n")
        try:
            self._flush()
        except OSError as error:
            if len(self._waiting) == 1:
                warnings.warn(f"the journal cannot be written: {error.strerror}; its rows wait in memory", stacklevel=2)

    def _flush(self) -> None:
        while self._waiting:
            if self._rows and self._rows % ROWS_PER_FILE == 0 and self._size:
                self._file.close()
                self._file = self._open(1 + self._rows // ROWS_PER_FILE)
            line = self._waiting[0]
            written = 0
            try:
                while written < len(line):
                    written += self._file.write(line[written:])
            except OSError:
                os.ftruncate(self._file.fileno(), self._size)  # no half of a line: a reader would stop there
                self._file.seek(self._size)
                raise
            self._size += len(line)
            self._rows += 1
            self._waiting.pop(0)

    def close(self) -> None:
        self._flush()
        self._file.close()


def attempts(directory: Path) -> Iterator[list[Row]]:
    """The rows of each attempt in `directory`, first attempt first."""
    folder = directory / "attempts"
    if not folder.is_dir():
        return
    for attempt in sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        rows: list[Row] = []
        for file in sorted(attempt.glob("metrics-*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                row = _row(line)
                if row is None:
                    break  # torn by a kill: nothing after it was written
                rows.append(row)
        yield rows


def _row(line: str) -> Row | None:
    """The row in a line of a journal; None for what is none: torn, or no words of ours."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or not isinstance(row.get("step"), int):
        return None
    whole = row["kind"] in GOES_BACK or (
        isinstance(row.get("images"), int) and isinstance(row.get("loss"), float | int)
    )
    return row if whole else None


def read_journal(directory: Path) -> list[Row]:
    """The rows of the run in `directory`, one a step, as an uninterrupted run would have written them."""
    committed: list[Row] = []
    for rows in attempts(directory):
        if not rows:
            continue
        for row in rows:
            if row["kind"] in GOES_BACK:
                committed = [earlier for earlier in committed if earlier["step"] <= row["step"]]
            else:
                committed.append(row)
    return committed


def restarts(directory: Path) -> list[int]:
    """The images seen at each step to which the run in `directory` went back: after a kill, or by its guards."""
    found: list[int] = []
    seen: dict[int, int] = {}
    for rows in attempts(directory):
        for row in rows:
            if row["kind"] not in GOES_BACK:
                seen[row["step"]] = row["images"]
            elif before := [images for step, images in seen.items() if step <= row["step"]]:
                found.append(max(before))
                seen = {step: images for step, images in seen.items() if step <= row["step"]}
    return found


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


def verify_ledger(rows: list[Row], order: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> int:
    """The number of steps whose samples were proved to be the ones of the pure order, none missing, none twice.

    Args:
        rows: what `read_journal` returns.
        order: (epochs, indices) of each step from step 0 on, as `isoflop.data` says they must be.

    Raises CheckpointError at the first hole, overlap or difference.
    """
    steps = iter(order)
    train = [row for row in rows if row["kind"] == "train"]
    verified, chain = 0, ""
    for number, row in enumerate(train):
        if number and row["since"] != train[number - 1]["step"]:
            before = train[number - 1]["step"]
            raise CheckpointError(f"the ledger goes from step {before} to {row['since']}: samples missed or repeated")
        while verified < row["step"]:
            chain = chain_samples(chain, *next(steps))
            verified += 1
        if chain != row["samples"]:
            raise CheckpointError(f"steps {row['since']} to {row['step']} consumed other samples than the order says")
    return verified
