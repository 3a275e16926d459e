"""Several runs trained as one: runs that differ in their learning rate or seed alone, with their weights stacked.

A tiny model keeps a processor busy with starting operators. Each run stays the run that it is, in a thread of its own,
with its own samples, optimizer, journal and checkpoints; only losses and gradients are computed together, by whoever
comes last to a step. They are those of a separate run within rounding, and do not depend on which of the others are
still there: places whose runs have ended are filled up.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from isoflop.models.stacking import stacked
from isoflop.objectives import Objective


class Stack:
    """Where runs meet: `places` are those of the runs that come, of `size` that the stack has in all.

    One thread works at a time, until it waits for the others at its next step: threads that wait for one another at
    every operator would cost more than stacking saves, and nobody else draws from PyTorch's generator while a model is
    built.
    """

    def __init__(self, size: int, places: Collection[int]) -> None:
        self.size = size
        self.share = 1 / len(places)
        self._present = set(places)
        self._turn = threading.Condition()
        self._handed_in: dict[int, tuple[Objective, Tensor, Tensor]] = {}
        self._losses: dict[int, Tensor | Exception] = {}

    @contextmanager
    def seat(self, place: int) -> Iterator[Seat]:
        """The seat of one run, for the thread that trains it, until it is left."""
        with self._turn:
            try:
                yield Seat(self, place)
            finally:
                self._present.discard(place)
                self._compute_if_complete()

    def gradients(self, place: int, objective: Objective, images: Tensor, labels: Tensor) -> Tensor:
        """See `Seat.gradients`."""
        self._handed_in[place] = (objective, images, labels)
        self._compute_if_complete()
        self._turn.wait_for(lambda: place in self._losses)
        loss = self._losses.pop(place)
        if isinstance(loss, Exception):
            raise loss
        return loss

    def _compute_if_complete(self) -> None:
        if not self._handed_in or set(self._handed_in) != self._present:
            return
        try:
            self._losses |= stacked_gradients(self._handed_in, self.size)
        except Exception as error:
            self._losses |= dict.fromkeys(self._handed_in, error)
        self._handed_in = {}
        self._turn.notify_all()


class Seat:
    """A run's place in a stack."""

    def __init__(self, stack: Stack, place: int) -> None:
        self.stack, self.place = stack, place
        self.share = stack.share
        """Of the time that passes, what this run accounts for."""

    def gradients(self, objective: Objective, images: Tensor, labels: Tensor) -> Tensor:
        """Puts the gradients of the mean loss into the parameters of `objective`; returns the loss."""
        return self.stack.gradients(self.place, objective, images, labels)


def stacked_gradients(runs: Mapping[int, tuple[Objective, Tensor, Tensor]], size: int) -> dict[int, Tensor]:
    """The losses of several runs by place, each of an objective, images (B, C, H, W) and labels; gradients are left in
    the parameters. Computed as a stack of `size`, whatever the number of runs.

    Nothing random may happen in the models: RuntimeError where it does.
    """
    places = sorted(runs)
    rows = [runs[place] for place in places]
    filled = rows + rows[:1] * (size - len(rows))
    owners = [dict(objective.named_parameters()) for objective, _, _ in rows]
    every = owners + owners[:1] * (size - len(rows))
    weights = {name: torch.stack([own[name].detach() for own in every]).requires_grad_() for name in owners[0]}
    base = rows[0][0]

    def loss_of(own: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = functional_call(base, own, (images, labels, None))
        return loss

    images, labels = (torch.stack([row[k] for row in filled]) for k in (1, 2))  # type: ignore[misc]
    with stacked():
        losses = vmap(loss_of)(weights, images, labels)
    found = torch.autograd.grad(losses[: len(rows)].sum(), list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        for k, own in enumerate(owners):
            own[name].grad = _laid_out(None if gradient is None else gradient[k], own[name])
    detached = losses.detach()
    return {place: detached[k] for k, place in enumerate(places)}


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """`gradient` in the memory layout of its parameter, with which fused updates walk side by side."""
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
