"""Training on many devices, and what is watched while it goes on."""

from typing import Literal, Self

from pydantic import model_validator

from isoflop.config.fields import Count, Maybe, Natural, Positive, Table, no_effect, problem

ENOUGH_LOSSES = 10  # that a spike is judged by


class ParallelConfig(Table):
    """How a run is spread over the processes that torchrun starts. None of it changes what is learned but by rounding.

    The global batch is `batch_size`, whatever the number of processes; each takes its part of it.
    """

    sharding: Literal["none", "full", "hybrid"] = no_effect("none")
    """What a process keeps: all weights (`none`), its share of weights and optimizer state (`full`, FSDP2), or its
    share among the processes of its host (`hybrid`)."""
    device_batch_size: Maybe[Count] = no_effect(None)
    """The most images at a time on a device; a larger part is taken in several goes, whose gradients are added."""
    recompute: Natural = no_effect(0)
    """Saves memory: the activations of every block (1), every second (2), … are computed again in the backward pass."""
    compile: bool = no_effect(False)
    """Compile each block with `torch.compile`: a minute at the start for speed on GPUs."""


class GuardsConfig(Table):
    """What happens when training goes wrong."""

    skip_nonfinite: Natural = 0
    """Steps whose loss or gradient is not finite that are passed over without an update. One more than that, and the
    run ends as diverged."""
    spike: Maybe[Positive] = None
    """A loss so many robust standard deviations above the median of the last `window` steps is a spike: the run goes
    back to its last snapshot and passes over the samples since. A snapshot in memory is taken every `window` steps,
    and checkpoints are made of snapshots. Left out, there is no such guard."""
    window: Count = 100
    """Steps between snapshots, and of the memory for losses; 10 at least, where there is a guard against spikes."""
    rollbacks: Natural = 3
    """Spikes that are rolled back before the run ends as diverged."""
    stuck_seconds: Positive = no_effect(1800.0)
    """A process that makes no step for so long writes its stack to `stuck/`; one of several then ends itself, so that
    torchrun starts again."""

    @model_validator(mode="after")
    def _can_judge(self) -> Self:
        if self.spike and self.window < ENOUGH_LOSSES:
            raise problem("window", f"= {self.window} losses are too few to tell a spike by: {ENOUGH_LOSSES} or more")
        return self
