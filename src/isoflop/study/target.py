"""The number by which the runs of a study are judged, measured on a finished run and kept in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isoflop.config import TransferConfig
from isoflop.errors import CheckpointError
from isoflop.runs.files import read_json, write_json

FILE = "target.json"


def measure_target(directory: Path, protocol: TransferConfig) -> None:
    """Writes the error (1 - accuracy) of the finished run in `directory` under `protocol` into its `target.json`.

    An error of nothing stands for half a wrong answer, for laws are fitted to its logarithm.
    """
    from isoflop.transfer import open_backbone, transfer

    (row,) = transfer(open_backbone(directory), protocol, folder=directory / "transfer")
    error = max(1.0 - row["accuracy_mean"], 0.5 / row["test_images"])
    found = {"protocol": protocol.model_dump(mode="json"), "error": error, "row": row}
    write_json(directory / FILE, found)


def read_target(directory: Path, protocol: TransferConfig) -> dict[str, Any] | None:
    """What `measure_target` found, or None where it has not yet, or under another protocol."""
    try:
        found = read_json(directory / FILE, {"protocol": dict, "error": float})
    except CheckpointError:
        return None
    return found if found["protocol"] == protocol.model_dump(mode="json") else None
