"""The current state of a study's folder: rows, curves, answer and progress, from files that are still being written."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.errors import StudyError
from isoflop.report import rows as table
from isoflop.report.figures.curves import worth_drawing
from isoflop.report.interim import interim_answer
from isoflop.report.rows import HELDOUT, Answer, Row, metric_key
from isoflop.report.savings import own_cost
from isoflop.runs.directory import FOUND
from isoflop.runs.journal import decode_row, read_journal

# The journal of a run, read as it grows: each byte once, in memory that does not grow with it.


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
                    # A line longer than a chunk is not a row: it is skipped.
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


TEXT = {"run_id", "family", "model", "status", "role", "error"}
OVER = {"done", "diverged", "failed", "stopped"}
SILENT_AFTER = 120.0
"""Seconds without a word after which a running run is called silent."""


class Live:
    """Reads a study's folder again and again, only what is new. Writes nothing."""

    def __init__(self, directory: Path) -> None:
        if not (directory / "study.json").is_file():
            raise StudyError(
                f"{directory}: not a study (no study.json); give the folder that `isoflop study run` writes to"
            )
        self.directory = directory
        self.study: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.answer: Answer = {}
        self.tails: dict[str, Tail] = {}
        self.version = 0
        self._seen: Any = None
        self._fitted: Any = None
        self._next_fit = 0.0

    def refresh(self, now: float | None = None) -> bool:
        """Look again; whether anything has changed since the last look. `now` is in seconds of any steady clock."""
        now = time.monotonic() if now is None else now
        self.study = read_object(self.directory / "study.json") or self.study
        planned = _table(self.directory / "results.csv")
        changed = False
        for row in planned or self.rows:
            tail = self.tails.setdefault(row["run_id"], Tail(self.directory / "runs" / row["run_id"]))
            changed |= tail.update()
        self.rows = [self._live(row) for row in planned or self.rows]
        changed |= self._answer(now)
        seen = [[row.get(cell) for cell in ("run_id", "status", "step", "error")] for row in self.rows]
        if seen != self._seen or changed:
            self._seen, changed = seen, True
            self.version += 1
        return changed

    def curves(self) -> dict[str, dict[str, list[Any]]]:
        """Run id → its curve so far."""
        return {run: tail.curve() for run, tail in self.tails.items()}

    def progress(self) -> dict[str, Any]:
        """Counts by status, cost so far, the share of the whole plan that is done, and the seconds that are left; a
        study with a limit may end before it, so that both are what is done and left at most (`at_most`)."""
        counts = Counter(str(row["status"]) for row in self.rows)
        done = sum(_flops(row) * _share(row) for row in self.rows)
        own = [own_cost(row, _share(row) * row["steps"] if table.positive(row, "steps") else None) for row in self.rows]
        flops, seconds = (sum(parts) for parts in zip(*own, strict=True)) if own else (0.0, 0.0)
        left = sum(_flops(row) * (1 - _share(row)) for row in self.rows if row["status"] not in OVER)
        workers = max(counts["running"], 1)
        pace = flops / seconds if seconds else 0.0
        limit = self._limit(pace)
        left += self._still_to_plan(limit)
        return {
            "counts": dict(counts),
            "flops": flops,
            "seconds": seconds,
            "share": done / (done + left) if done + left else 0.0,
            "seconds_left": left / pace / workers if pace and left else None,
            "at_most": limit is not None,
            "over": bool(self.rows) and not left,
        }

    def target(self) -> float | None:
        """The compute that the study will answer for, in training FLOPs."""
        value = self._config().get("target_budget")
        return float(value) if table.finite(value) else None

    def _is_judged_by_target(self) -> bool:
        return metric_key(self.study.get("config")) != HELDOUT

    def _config(self) -> dict[str, Any]:
        config = self.study.get("config")
        study = config.get("study") if isinstance(config, dict) else None
        return study if isinstance(study, dict) else {}

    def _families(self) -> tuple[str, ...]:
        config = self.study.get("config")
        named = config.get("families") if isinstance(config, dict) else None
        return tuple(named) if isinstance(named, dict) else ()

    def _limit(self, pace: float) -> float | None:
        """FLOPs that the study may take in all; hours and money at `pace` FLOPs a second. None without a limit."""
        config = self._config()
        budget, hours, money, price = (config.get(k) for k in ("budget", "device_hours", "money", "price_per_hour"))
        if table.finite(config.get("hours")):  # of all workers
            hours = config["hours"] * (config.get("workers") or os.cpu_count() or 1)
        if table.finite(budget):
            return float(budget)
        if table.finite(money) and table.finite(price) and price > 0:
            hours = money / price
        return float(hours) * 3600 * pace if table.finite(hours) and pace else None

    def _still_to_plan(self, limit: float | None) -> float:
        """FLOPs of what is not planned yet: what is left of the `limit`, or as many runs on each of the rungs to come
        as on the last one. Zero once answered."""
        if not self.rows or (self.directory / "answer.json").exists():
            return 0.0
        if limit is not None:
            return max(0.0, limit - sum(map(_flops, self.rows)))
        planned = table.rungs(self.rows)
        budgets = [b for b in self._config().get("budgets") or () if table.finite(b) and b > 1.01 * planned[-1]]
        last = sum(table.rung(row) == planned[-1] for row in self.rows)
        finals = self._config().get("finals")
        return last * sum(budgets) + (self.target() or 0.0) * (finals if isinstance(finals, int) else 1)

    def _live(self, row: Row) -> Row:
        """The planned row with what the run's own folder says by now."""
        folder = self.directory / "runs" / str(row["run_id"])
        status = read_object(folder / "status.json")
        known = {*FOUND, "seconds", "error", "step"}
        row = {**row, **{key: value for key, value in status.items() if key in known}}
        if self._is_judged_by_target():
            row["heldout_loss"] = read_object(folder / "target.json").get("error")
            if status.get("state") == "done" and row["heldout_loss"] is None:
                status = {**status, "state": "running"}  # trained, not yet judged
        if isinstance(status.get("state"), str) and row.get("status") != "failed":
            row["status"] = status["state"]
        elif not status and row.get("status") == "planned" and (folder / "attempts").exists():
            row["status"] = "running"
        if row["status"] == "running":
            row["silent_seconds"] = age(folder)
            tail = self.tails.get(row["run_id"])
            share = self._pretraining_share(row)
            if tail is not None and tail.last:
                row["step"] = max(int(row.get("step") or 0), int(tail.last.get("step", 0)))
                row["seconds"] = tail.last.get("seconds", row.get("seconds"))
                row["train_loss"] = tail.last.get("loss")
                row["share"] = share + (1 - share) * _done(row)
            elif share and (first := read_object(folder / "pretraining" / "status.json")):
                row["seconds"], row["share"] = first.get("seconds"), share * _done(first)
        return row

    def _pretraining_share(self, row: Row) -> float:
        """Of the compute of a run, that of what it learns first."""
        config = self.study.get("config")
        families = config.get("families") if isinstance(config, dict) else None
        own = families.get(row.get("family")) if isinstance(families, dict) else None
        first = own.get("pretraining") if isinstance(own, dict) else None
        share = first.get("share") if isinstance(first, dict) else None
        return float(share) if table.finite(share) and 0 < share < 1 else 0.0

    def _answer(self, now: float) -> bool:
        """The study's own answer where it has one; until then ours, fitted anew when more runs have finished."""
        written = read_object(self.directory / "answer.json")
        if written:
            changed = written != self.answer
            self.answer = written
            return changed
        done = sorted(row["run_id"] for row in table.measured(self.rows, "ladder"))
        target = self.target()
        if done == self._fitted or target is None or now < self._next_fit:
            return False
        began = time.monotonic()
        self.answer = interim_answer(self.rows, target, bootstrap=60, families=self._families())
        # A watcher must not take the cores from the study: it fits at most a twentieth of the time.
        self._next_fit = now + 20 * (time.monotonic() - began)
        self._fitted = done
        return True


def _flops(row: Row) -> float:
    return float(row["train_flops"]) if table.positive(row, "train_flops") else 0.0


def _share(row: Row) -> float:
    if row["status"] in OVER:
        return 1.0
    return float(row["share"]) if table.finite(row.get("share")) else _done(row)


def _done(row: Row) -> float:
    steps, step = row.get("steps"), row.get("step")
    return min(float(step) / steps, 1.0) if table.finite(steps) and table.finite(step) and steps > 0 else 0.0


def age(folder: Path) -> float:
    """Seconds since the run in `folder` last wrote something."""
    runs = (folder, folder / "pretraining")
    files = [path for run in runs for path in (run / "status.json", *run.glob("attempts/*/metrics-*.jsonl"))]
    times = [file.stat().st_mtime for file in files if file.exists()]
    return max(0.0, time.time() - max(times)) if times else 0.0


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} while it is missing, half-written or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _table(path: Path) -> list[Row]:
    """The rows of `results.csv` that are whole; none while it is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: _cell(k, v) for k, v in line.items() if k} for line in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if row.get("run_id") and row.get("status") and _inside(str(row["run_id"]))]


def _inside(run_id: str) -> bool:
    """Whether a run's name is a plain folder name: a table must not lead out of its study."""
    return run_id not in (".", "..") and not set(run_id) & set("/\\\0")


def _cell(name: str, text: Any) -> Any:
    if name in TEXT or not isinstance(text, str):
        return text if isinstance(text, str) else ""
    try:
        return float(text) if text else None
    except ValueError:
        return None
