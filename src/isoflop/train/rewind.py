"""Going back when the loss leaps: a copy of the whole state is kept at hand, and the samples since are passed over."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from isoflop.config.scale import GuardsConfig
from isoflop.objectives import Objective
from isoflop.runs.journal import Row
from isoflop.train.guards import robust_z
from isoflop.train.state import Progress, pack, unpack


class Rewind:
    """Watches the losses of a run, where `config` asks for it. All ranks are told the same loss and decide alike.

    `snapshot`, if there is one, is the packed tensors and the progress to which the run can go back. A resumed run can
    go back no further than to where it was resumed: that is why checkpoints are of the snapshot.
    """

    def __init__(self, config: GuardsConfig, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        self.config = config
        self.objective = objective
        self.optimizer = optimizer
        self.snapshot: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def take(self, progress: Progress) -> None:
        """Copies the present state."""
        if self.config.spike:
            tensors = pack(self.objective, self.optimizer)
            self.snapshot = ({name: t.detach().clone() for name, t in tensors.items()}, progress.to_dict())

    def leap(self, loss: float, progress: Progress) -> float | None:
        """By how many robust standard deviations `loss` leapt, or None if it did not and belongs to the others now."""
        if not self.config.spike:
            return None
        z = robust_z(loss, progress.recent)
        if z > self.config.spike:
            return z
        progress.recent = [*progress.recent, loss][-self.config.window :]
        return None

    def go_back(self, progress: Progress) -> Row:
        """Puts the snapshot back, `progress` in place, and passes over the samples since; the journal's row of it."""
        assert self.snapshot is not None
        tensors, state = self.snapshot
        first, count = int(state["step"]), progress.step - int(state["step"])
        unpack({name: t.clone() for name, t in tensors.items()}, self.objective, self.optimizer)
        seconds = progress.seconds
        for name, value in asdict(Progress(**state)).items():
            setattr(progress, name, value)
        progress.seconds = seconds
        progress.skipped = [*progress.skipped, [first, count]]
        self.snapshot = (tensors, progress.to_dict())
        return {"kind": "rollback", "step": first, "from": first + count}
