"""One optimizer step: from a batch to changed weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.config import RunConfig
from isoflop.data import Batch, Source, derive_key, mix, soft_targets, uniforms
from isoflop.objectives import Objective, Uniforms
from isoflop.train.device import Precision, to_unit_range
from isoflop.train.optimizers import AdaptiveGradientClipping, build_optimizer
from isoflop.train.state import step_seed


class Step:
    """The update rule of a run: `step(batch, rate)` changes the weights of `objective` and returns its loss."""

    def __init__(self, objective: Objective, source: Source, config: RunConfig, device: torch.device) -> None:
        self.objective = objective
        self.source = source
        self.config = config
        self.device = device
        self.precision = Precision(config.precision)
        self.optimizer = build_optimizer(objective, config.optim)
        self.clip_units = AdaptiveGradientClipping(objective, config.optim.agc) if config.optim.agc else None

    def __call__(self, batch: Batch, rate: float) -> float:
        """Takes one step at learning rate `rate`; everything random in it depends on the seed, step and samples."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.config.seed, batch.step))  # of stochastic depth and dropout
        images, labels = to_unit_range(batch.images, self.source, self.device), batch.labels.to(self.device)
        data = self.config.data
        if data.mixup or data.cutmix:
            images, labels = mix(
                images,
                soft_targets(labels, self.source.num_classes),
                seed=data.seed,
                step=batch.step,
                first=batch.first,
                mixup_alpha=data.mixup,
                cutmix_alpha=data.cutmix,
            )
        noise = sample_uniforms(self.config.seed, batch.epochs, batch.indices, self.device)
        with self.precision.autocast(self.device):
            loss: Tensor = self.objective(images, labels, noise)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip_units:
            self.clip_units()
        if self.config.optim.clip:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def sample_uniforms(
    seed: int, epochs: NDArray[np.int64] | int, indices: NDArray[np.int64], device: torch.device
) -> Uniforms:
    """The random numbers of an objective for these samples, the same on any device and in any batch."""

    def draw(stream: str, count: int) -> Tensor:
        drawn = uniforms(derive_key("objective", seed, stream), epochs, indices, count)
        return torch.from_numpy(drawn.astype(np.float32)).to(device)

    return draw
