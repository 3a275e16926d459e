"""The table of runs and the JSON files of a study, read and written without torch.

`published.json` has the SHA-256 of the table and of the answer. It is written before them, with the hashes of the old
and the new content, so that a kill in between leaves nothing that looks damaged.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import CheckpointError, StudyError
from isoflop.runs.files import read_json, sha256_of, write_atomically, write_json

COLUMNS = (
    "run_id",
    "family",
    "model",
    "status",
    "role",
    "flops_per_image",
    "images",
    "unique_images",
    "train_flops",
    "budget",
    "learning_rate",
    "recipe",
    "seed",
    "batch_size",
    "steps",
    "trunk_steps",
    "heldout_loss",
    "heldout_accuracy",
    "probe_accuracy",
    "rankme",
    "target",
    "seconds",
    "utilisation",
    "parameters",
    "error",
)
PUBLISHED = "published.json"
# In the folder of a run that was handed over: how it did on the test part, and where its attention looks.
JUDGED, ATTENTION, ATTENTION_NUMBERS = "test.json", "attention-rollout.png", "attention.json"
LATER = {"recipe", "trunk_steps", "target", "utilisation", "probe_accuracy", "rankme"}  # columns that old tables lack
Row = dict[str, Any]


def read_document(directory: Path, name: str) -> dict[str, Any]:
    """A JSON file of the study in `directory`; StudyError says what to run when it is not there."""
    if not is_study(directory):
        raise StudyError(f"{directory}: not a study (no study.json); run `isoflop study run` first")
    if not (directory / name).exists():
        raise StudyError(f"{directory}: no {name} yet; let `isoflop study run` finish")
    return read_whole(directory, name)


def is_study(directory: Path) -> bool:
    """Whether `directory` is the folder of a study."""
    return (directory / "study.json").is_file()


def answer_directory(study: Path, family: str | None = None) -> Path:
    """The folder of the run that a study hands over: of all finished runs, or of those of a family, the one with the
    lowest loss, which usually is the trained answer.

    Raises StudyError where no answer of that family was trained.
    """
    answer = read_document(study, "answer.json") if (study / "answer.json").exists() else {}
    chosen = answer.get("selected") if family is None else (answer.get("finals") or {}).get(family)
    run = (chosen or {}).get("run_id" if family is None else "selected")
    if isinstance(run, str) and run:
        return study / "runs" / run
    family = family or answer.get("best")
    if not family:
        read_document(study, "answer.json")  # says what to run first
    finals = [row for row in read_results(study) if row["role"] == "final" and row["family"] == family]
    if not finals:
        raise StudyError(f"{study}: no answer of {family or 'any family'} was trained; see study.finals")
    return study / "runs" / str(finals[0]["run_id"])


def publish(directory: Path, name: str, text: str) -> None:
    """Replaces the file `name` of a study, after its SHA-256 in `published.json`; StudyError when the storage
    refuses."""
    path, record = directory / name, _published(directory)
    try:
        there = {sha256_of(path)} if path.exists() else set()
        coming = hashlib.sha256(text.encode()).hexdigest()
        record[name] = [coming, *(there & set(record.get(name, ())))]
        write_json(directory / PUBLISHED, record)
        write_atomically(path, text)
    except OSError as error:
        raise StudyError(f"{path}: cannot write: {error.strerror}") from error


def _published(directory: Path) -> dict[str, Any]:
    try:
        return read_json(directory / PUBLISHED)
    except CheckpointError:  # of an earlier version; or damaged, and written again with the next file
        return {}


def _check(directory: Path, name: str) -> None:
    """Raises StudyError where the file `name` is not as it was written."""
    expected = _published(directory).get(name)
    try:
        while isinstance(expected, list) and expected and sha256_of(directory / name) not in expected:
            before, expected = expected, _published(directory).get(name)
            if before == expected:  # nobody has just written it
                raise StudyError(
                    f"{directory / name}: damaged, or edited: its SHA-256 is not that in {PUBLISHED}; "
                    "`isoflop study run` writes it again from the runs"
                )
    except OSError as error:
        raise StudyError(f"{directory / name}: not readable: {error.strerror}") from error


def read_whole(directory: Path, name: str) -> dict[str, Any]:
    """A JSON file of the study that is there; StudyError where it is damaged."""
    fields = {"study": str, "name": str} if name == "study.json" else {}
    found = read_json(directory / name, fields, error=StudyError)
    _check(directory, name)
    return found


def write_results(directory: Path, rows: Iterable[Row]) -> None:
    """Replaces the `results.csv` of a study, one row a run; StudyError when the storage refuses."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    publish(directory, "results.csv", text.getvalue())


def read_results(directory: Path) -> list[Row]:
    """The results table as written last; numbers as numbers, empty cells as None.

    Raises StudyError where it is not as it was written: cut off, edited, or without a column.
    """
    path = directory / "results.csv"
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_row(line, names) for names, line in _lines(csv.reader(file))]
    except (OSError, ValueError, csv.Error) as error:
        raise StudyError(f"{path}: {error}; `isoflop study run` writes it again from the runs") from error
    _check(directory, path.name)
    return rows


def judged(rows: Iterable[Row]) -> list[Row]:
    """`rows` for the report, whose losses are then what the runs were judged by."""
    return [{**row, "heldout_loss": row.get("target", row["heldout_loss"])} for row in rows]


TEXT = {"run_id", "family", "model", "status", "role", "recipe", "error"}
WHOLE = {"images", "unique_images", "seed", "batch_size", "steps", "trunk_steps", "stopped_at", "parameters"}


def _lines(table: Iterable[list[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """The names of the columns with each line below them; ValueError names a column or a line that is not whole."""
    names, *lines = list(table) or [[]]
    if missing := [name for name in COLUMNS if name not in names and name not in LATER]:
        raise ValueError(f"damaged: no column `{missing[0]}`")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(names):
            raise ValueError(f"damaged: line {number} has {len(line)} cells of {len(names)}")
        yield names, line


def _row(line: Sequence[str], names: Sequence[str]) -> Row:
    return {name: _cell(name, text) for name, text in zip(names, line, strict=True)}


def _cell(name: str, text: str) -> Any:
    if name in TEXT:
        return text
    if not text:
        return None
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        raise ValueError(f"damaged: `{name}` is {text!r}, which is no number") from None
