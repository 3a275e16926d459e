"""TensorBoard event files beside the journal."""

from __future__ import annotations

from pathlib import Path

from isoflop.train.journal import Row

SERIES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "heldout_loss": "heldout/loss",
    "heldout_accuracy": "heldout/accuracy",
}


class TensorBoardWriter:
    """Writes journal rows as scalars over steps; steps that a resumed run trains again replace the older ones."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import: only where it is wanted

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, row: Row) -> None:
        for name, tag in SERIES.items():
            if name in row:
                self._writer.add_scalar(tag, row[name], row["step"])

    def close(self) -> None:
        self._writer.close()
