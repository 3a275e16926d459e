"""EMA: an exponential moving average of the weights, used for evaluation and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SLOT = "average"


class WeightAverage:
    """An exponential moving average of the weights that `optimizer` trains.

    It lies beside the optimizer's own state, as one more tensor of each parameter, and is saved, restored and sharded
    with it. At step t = 0, 1, … the decay is min(decay, (1 + t)/(10 + t)), so that the start is soon forgotten
    (arXiv 2102.06171, appendix). What is not trained, such as statistics of BatchNorm, is not averaged.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.optimizer = optimizer
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int, is_valid: torch.Tensor | None = None) -> None:
        """Takes in the weights after step `step` (from 0); no average changes where the scalar `is_valid` is false."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                slots = self.optimizer.state[parameter]
                if SLOT in slots:
                    average = slots[SLOT]
                    taken = parameter if is_valid is None else torch.where(is_valid, parameter, average)
                    average.lerp_(taken, 1 - decay)
                else:
                    slots[SLOT] = parameter.detach().clone()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the averaged weights for as long as this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                average = self.optimizer.state[parameter].get(SLOT)
                if average is not None:
                    held = parameter.detach().clone()
                    parameter.copy_(average)
                    average.copy_(held)
