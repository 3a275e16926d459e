"""The result of an evaluation as JSON, and as rows of a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.config import TransferConfig
from isoflop.errors import CheckpointError
from isoflop.escapes import markdown_text
from isoflop.runs.files import write_json

HEAD = "| backbone | data | protocol | shots | accuracy (%) | 95 % interval | seeds |\n|---|---|---|---|---|---|---|\n"


def write_result(folder: Path, checkpoint: str, config: TransferConfig, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `result.json` and `result.md` into `folder`; returns the path of the first."""
    document = {"checkpoint": checkpoint, "config": config.model_dump(mode="json"), "rows": list(rows)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", document)
        partial = folder / ".result.md"
        partial.write_text(markdown(rows), encoding="utf-8")
        partial.replace(folder / "result.md")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write here: {error.strerror}") from error
    return folder / "result.json"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line for each row of `transfer`."""
    return HEAD + "".join(markdown_row(row) for row in rows)


def markdown_row(row: Mapping[str, Any]) -> str:
    """One line of that table."""
    interval = f"{100 * row['interval'][0]:.1f} – {100 * row['interval'][1]:.1f}" if row.get("interval") else ""
    cells = (row["name"], row["dataset"], row["protocol"], row["shots"] or "all", f"{100 * row['accuracy_mean']:.1f}")
    text = (markdown_text(cell) for cell in (*cells, interval, row["seeds"]))
    return f"| {' | '.join(text)} |\n"
