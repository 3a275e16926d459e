"""TensorBoard event files beside the journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Scalars over steps in `folder`; steps that a resumed run trains again replace the older ones."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import: only where it is wanted

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()
