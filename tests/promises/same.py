"""What must be the same after everything that can happen to a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.config import RunConfig
from isoflop.data import locate
from isoflop.runs.journal import data_steps
from isoflop.train import read_journal, verify_ledger
from isoflop.train.record import MEASURED


def measured(directory: Path) -> list[dict[str, Any]]:
    """The journal without the columns that tell the time."""
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in read_journal(directory)]


def pure_order(
    config: RunConfig, num_samples: int, skipped: list[list[int]] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The samples of every step, worked out without the loader."""
    for step in data_steps(config.steps, skipped or []):
        positions = np.arange(step * config.batch_size, (step + 1) * config.batch_size, dtype=np.int64)
        yield locate(positions, num_samples, config.data.seed)


def check_samples(config: RunConfig, directory: Path, skipped: list[list[int]] | None = None) -> None:
    """Every step was fed its samples, none missing, none twice; no step lacks its row."""
    rows = read_journal(directory)
    assert verify_ledger(rows, pure_order(config, 1000, skipped)) == config.steps


def check_same(config: RunConfig, undisturbed: Path, disturbed: Path) -> None:
    """The same weights, rows and samples, bit for bit."""
    assert (undisturbed / "model.safetensors").read_bytes() == (disturbed / "model.safetensors").read_bytes()
    assert measured(undisturbed) == measured(disturbed)
    check_samples(config, disturbed)


def check_close(config: RunConfig, undisturbed: Path, disturbed: Path) -> None:
    """The same samples, and the same losses to the rounding of another layout."""
    check_samples(config, disturbed)
    ours, theirs = measured(disturbed), measured(undisturbed)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    losses = [[row["loss"] for row in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=2e-4)
