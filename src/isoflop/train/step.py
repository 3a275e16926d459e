"""One optimizer step: gradients of a batch (with gradient accumulation over microbatches), clipping, update, EMA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from isoflop.config import RunConfig
from isoflop.data import Batch, Source, derive_key, mix, soft_targets, uniforms
from isoflop.data.loader import rank_part
from isoflop.models.blocks import rows_of_batch
from isoflop.objectives import Objective, Uniforms
from isoflop.train.checkpoints import step_seed
from isoflop.train.device import Precision, normalize
from isoflop.train.optim import AdaptiveGradientClipping, WeightAverage, build_optimizer, set_rate, uphill
from isoflop.train.ranks import Ranks
from isoflop.train.sharded import gradient_norm, scale_gradients, sum_whole_gradients


class Outcome(NamedTuple):
    """The result of a step, the same on every rank. Its numbers are on the device: reading one waits for the step."""

    numbers: Tensor
    """float32 (2,): the mean loss over the global batch; the norm of the whole gradient, before clipping"""
    votes: tuple[bool, ...] = ()
    """for each vote, whether any rank voted yes"""

    @property
    def loss(self) -> float:
        return read_outcomes([self])[0][0]

    @property
    def gradient_norm(self) -> float:
        return read_outcomes([self])[0][1]

    @property
    def updated(self) -> bool:
        """False if loss or gradient were not finite: weights and BatchNorm statistics are then unchanged."""
        return all(map(math.isfinite, read_outcomes([self])[0]))


def read_outcomes(outcomes: Sequence[Outcome]) -> list[list[float]]:
    """[loss, gradient norm] of each, in one transfer from the device."""
    read: list[list[float]] = torch.stack([outcome.numbers for outcome in outcomes]).tolist()
    return read


class Step:
    """The update rule of a run: `step(batch, rate)` changes the weights of `objective`, as `arrange` laid it out."""

    def __init__(self, objective: Objective, source: Source, config: RunConfig, ranks: Ranks) -> None:
        self.objective = objective
        self.source = source
        self.config = config
        self.ranks = ranks
        self.device = ranks.device
        self.precision = Precision(config.precision)
        self.optimizer = build_optimizer(objective, config.optim)
        self.clip_units = AdaptiveGradientClipping(objective, config.optim.agc) if config.optim.agc else None
        self.average = WeightAverage(self.optimizer, config.optim.average) if config.optim.average else None
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        norms = (module for module in objective.modules() if isinstance(module, _BatchNorm))
        self.statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.microbatches = accumulation_steps(config.batch_size, config.parallel.device_batch_size, ranks.world)
        # Fused updates of PyTorch can be told on the device to change nothing, as by GradScaler.
        self.skips_on_device = ranks.is_alone and isinstance(self.optimizer, torch.optim.AdamW | torch.optim.SGD)
        self.is_first = True

    def __call__(self, batch: Batch, rate: float, votes: Sequence[bool] = ()) -> Outcome:
        """Takes one step at learning rate `rate`. Random numbers depend only on the seed, step and samples.

        `votes` are decisions on which all ranks must agree. They are reduced in one message with the loss.
        """
        set_rate(self.optimizer, rate)
        before = self._copied_statistics()
        loss = self._gradients(batch)
        if self.config.optim.sam:
            after = self._copied_statistics()
            with uphill(self.parameters, self.config.optim.sam):
                self._gradients(batch)
            for buffer, value in zip(self.statistics, after, strict=True):  # uphill they belong to perturbed weights
                buffer.copy_(value)
        if not self.ranks.is_alone:
            mine = torch.tensor([0.0, *map(float, votes)], device=self.device)
            mine[0] = loss
            reduced = self.ranks.sum(mine)
            loss, votes = reduced[0], [vote > 0 for vote in reduced[1:].tolist()]
        if self.clip_units:
            self.clip_units()
        norm = gradient_norm(self.parameters)
        numbers = torch.stack([loss.float(), norm.float()])
        is_finite = numbers.isfinite().all()
        if self.config.optim.clip:
            scale_gradients(self.parameters, norm, self.config.optim.clip)
        self._update(batch.step, is_finite)
        for buffer, value in zip(self.statistics, before, strict=True):  # which contain values that are not finite
            torch.where(is_finite, buffer, value, out=buffer)
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(numbers, tuple(votes))

    def _update(self, step: int, is_finite: Tensor) -> None:
        """Changes the weights and their average, if loss and gradient are finite.

        The device decides, and this process does not wait for it. It does at the first update, which makes the state of
        the optimizer, and where the optimizer is not one of PyTorch's fused ones.
        """
        if self.is_first or not self.skips_on_device:
            if not is_finite.item():
                return
            self.is_first = False
            self.optimizer.step()
            if self.average:
                self.average.update(step)
            return
        cast(Any, self.optimizer).found_inf = (~is_finite).float()
        self.optimizer.step()
        if self.average:
            self.average.update(step, is_finite)

    def _copied_statistics(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.statistics]

    def _seed(self, step: int) -> None:
        """Seeds stochastic depth and dropout. `torch.manual_seed` takes a millisecond, to ask for every kind of
        accelerator."""
        torch.default_generator.manual_seed(step_seed(self.config.seed, step))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(step_seed(self.config.seed, step))

    def shown_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights to evaluate and export: the EMA, if there is one."""
        return self.average.in_place() if self.average else nullcontext()

    def _gradients(self, batch: Batch) -> Tensor:
        """The gradients of the global batch in `parameters`; this rank's share of the mean loss."""
        loss = self._backward(batch)
        if not self.ranks.is_alone:
            sum_whole_gradients(self.parameters, self.ranks)
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        """Gradient accumulation over the microbatches of this rank's part of the batch; its share of the mean loss."""
        images, labels = normalize(batch.images, self.source, self.device), batch.labels.to(self.device)
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
        total, count, views = self.config.batch_size, len(images), self.objective.views
        losses = []
        for number in range(self.microbatches):
            start, stop = rank_part(count, number, self.microbatches)
            self._seed(batch.step)
            noise = sample_uniforms(self.config.seed, batch.epochs[start:stop], batch.indices[start:stop], self.device)
            is_whole = stop - start == total
            # Until the backward pass is done: recomputed activations draw again.
            with nullcontext() if is_whole else rows_of_batch(views * (batch.first + start), views * total):
                with self.precision.autocast(self.device):
                    loss: Tensor = self.objective(images[start:stop], labels[start:stop], noise)
                if not is_whole:
                    loss = loss * ((stop - start) / total)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def accumulation_steps(batch_size: int, at_most: int | None, world: int = 1) -> int:
    """Steps of gradient accumulation: into how many microbatches of `at_most` images each of `world` ranks splits its
    part of a batch.

    The number is the same on all ranks, whose parts differ by at most two images. No microbatch is empty, so a limit
    below that difference may be exceeded by it.
    """
    if at_most is None:
        return 1
    shares = [stop - start for start, stop in (rank_part(batch_size, rank, world) for rank in range(world))]

    def largest(parts: int) -> int:
        return max(stop - start for n in set(shares) for start, stop in (rank_part(n, k, parts) for k in range(parts)))

    return next((parts for parts in range(1, min(shares)) if largest(parts) <= at_most), min(shares))


def sample_uniforms(
    seed: int, epochs: NDArray[np.int64] | int, indices: NDArray[np.int64], device: torch.device
) -> Uniforms:
    """The random numbers of an objective for these samples, the same on any device and in any batch."""

    def draw(stream: str, count: int) -> Tensor:
        drawn = uniforms(derive_key("objective", seed, stream), epochs, indices, count)
        return torch.from_numpy(drawn.astype(np.float32)).to(device, non_blocking=True)

    return draw
