"""The journal of a run, read as it grows: each byte once, in memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.report.figures.curves import worth_drawing
from isoflop.report.rows import Row
from isoflop.runs.journal import decode_row, read_journal

BINS_A_DECADE = 24
CHUNK = 1 << 22
"""Bytes read at a time."""
BACKLOG = 1 << 24
"""Bytes that are parsed line by line; of a longer backlog an even sample of that size is, with all evaluations."""
LONG = 1 << 24
"""Bytes of a journal, some 60,000 rows, beyond which a curve is drawn from averages."""
TRAINING = b'{"kind": "train"'
"""How a row of training begins: other lines (a start, a rollback) are few."""


class Tail:
    """A run's training and held-out loss by images seen, averaged over spans of equal width on a logarithmic axis; of
    the learning rate and of the time, the last value of each span."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "attempts"
        self.last: dict[str, Any] = {}
        self.restarts: list[float] = []
        self._read: dict[Path, int] = {}
        self._train: dict[int, tuple[float, float, int, float]] = {}
        self._heldout: dict[int, tuple[float, float, float]] = {}
        self._pace: dict[int, tuple[float, float, float | None, float | None]] = {}

    def update(self) -> bool:
        """Read what was written since the last call; whether there was anything."""
        sizes = self._sizes()
        if any(size < self._read.get(file, 0) for file, size in sizes.items()):  # another run has taken its place
            self.__init__(self.folder.parent)  # type: ignore[misc]
        new = {file: size - self._read.get(file, 0) for file, size in sizes.items()}
        stride = max(1, math.ceil(sum(new.values()) / BACKLOG))
        return sum(self._consume(file, stride) for file, grown in new.items() if grown) > 0

    def curve(self) -> dict[str, list[Any]]:
        """The columns that `write_report` takes, and `restarts` in images seen."""
        rows = [(x / n, step, y / n, None) for x, y, n, step in self._train.values()]
        rows += [(images, step, None, loss) for images, step, loss in self._heldout.values()]  # type: ignore[misc]
        rows.sort(key=lambda row: row[0])
        return {
            "images": [row[0] for row in rows],
            "step": [row[1] for row in rows],
            "train_loss": [row[2] for row in rows],
            "heldout_loss": [row[3] for row in rows],
            "restarts": list(self.restarts),
        }

    def pace(self) -> dict[str, list[float | None]]:
        """By images seen: the learning rate, and the images a second since the point before."""
        points = [self._pace[bin_] for bin_ in sorted(self._pace)]
        speeds: list[float | None] = [None] * len(points)
        for i, ((x0, _, _, t0), (x1, _, _, t1)) in enumerate(pairwise(points)):
            if t0 is not None and t1 is not None and t1 > t0:
                speeds[i + 1] = (x1 - x0) / (t1 - t0)
        return {"images": [p[0] for p in points], "learning_rate": [p[2] for p in points], "images_per_second": speeds}

    def size(self) -> int:
        """Bytes of the journal now."""
        return sum(self._sizes().values())

    def _sizes(self) -> dict[Path, int]:
        sizes: dict[Path, int] = {}
        for file in self._files():
            with suppress(OSError):
                sizes[file] = file.stat().st_size
        return sizes

    def _files(self) -> list[Path]:
        try:
            attempts = sorted((p for p in self.folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
            return [file for attempt in attempts for file in sorted(attempt.glob("metrics-*.jsonl"))]
        except OSError:
            return []

    def _consume(self, file: Path, stride: int) -> bool:
        seen = False
        for lines in self._chunks(file):
            # The last line is where the run is now. It is never skipped, and neither is what comes seldom.
            *before, last = lines
            if stride > 1:
                before = [
                    line
                    for k, line in enumerate(before)
                    if k % stride == 0 or b'"heldout_loss"' in line or line[:16] != TRAINING
                ]
            for line in (*before, last):
                if (row := decode_row(line)) is not None:  # else a kill has torn it, or it is damaged
                    self._take(row)
                    seen = True
        return seen

    def _chunks(self, file: Path) -> Iterator[list[bytes]]:
        """Whole lines that were not read yet; a line without its end is left for the next time."""
        try:
            with file.open("rb") as stream:
                stream.seek(self._read.get(file, 0))
                while chunk := stream.read(CHUNK):
                    end = chunk.rfind(b"\n") + 1
                    if not end and len(chunk) < CHUNK:
                        return
                    # A line longer than a chunk is no row of ours: it is passed over.
                    end = end or len(chunk)
                    self._read[file] = stream.tell() - len(chunk) + end
                    stream.seek(self._read[file])
                    yield chunk[:end].rstrip(b"\n").split(b"\n")
        except OSError:
            return

    def _take(self, row: dict[str, Any]) -> None:
        step, images = row.get("step"), row.get("images")
        if row.get("kind") in ("start", "rollback"):
            if isinstance(step, int) and step >= 0:
                self._begin_again(step)
            return
        if not (_positive(step) and _positive(images)):
            return
        self.last = {**self.last, **row}
        bin_ = math.floor(BINS_A_DECADE * math.log10(images))  # type: ignore[arg-type]
        if _positive(row.get("loss")):
            x, y, n, _ = self._train.get(bin_, (0.0, 0.0, 0, 0.0))
            self._train[bin_] = (x + images, y + row["loss"], n + 1, step)  # type: ignore[operator, assignment]
        lr, seconds = (row.get(name) if _positive(row.get(name)) else None for name in ("lr", "seconds"))
        self._pace[bin_] = (float(images), float(step), lr, seconds)  # type: ignore[arg-type]
        if _positive(row.get("heldout_loss")):
            self._heldout[bin_] = (float(images), float(step), float(row["heldout_loss"]))  # type: ignore[arg-type]

    def _begin_again(self, step: int) -> None:
        """What earlier attempts said about later steps was not committed, and is trained again."""
        if self._train:
            before = [x / n for x, _, n, last in self._train.values() if last <= step]
            if before:
                self.restarts.append(max(before))
        self._train = {k: v for k, v in self._train.items() if v[3] <= step}
        self._heldout = {k: v for k, v in self._heldout.items() if v[1] <= step}
        self._pace = {k: v for k, v in self._pace.items() if v[1] <= step}


def read_curves(study: Path, rows: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """The training curve of each run of a study that its report draws, by the run's id."""
    return {row["run_id"]: read_curve(study / "runs" / row["run_id"]) for row in worth_drawing(rows)}


def read_curve(run: Path) -> dict[str, list[Any]]:
    """The journal of a run as columns: step, images, train_loss, heldout_loss (None where not measured), and the images
    seen at its restarts. Of a journal beyond `LONG` it is averaged, as on the live page."""
    tail = Tail(run)
    if tail.size() > LONG:
        tail.update()
        return tail.curve()
    journal = read_journal(run)
    return {
        "restarts": list(journal.restarts),
        "step": [row["step"] for row in journal],
        "images": [row["images"] for row in journal],
        "train_loss": [row["loss"] for row in journal],
        "heldout_loss": [row.get("heldout_loss") for row in journal],
    }


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
