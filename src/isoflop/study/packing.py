"""Which runs of a study are trained as one, with stacked weights: a sweep of learning rates or seeds of a tiny model.

What pays was measured (`benchmarks/packing.py`, docs/planner.md): the smaller a step, the more, and only for a few runs
that are alike. More runs than workers are needed, too, or the packing would leave processors idle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.config import RunConfig, SupervisedConfig, canonical_json
from isoflop.config.scale import ParallelConfig
from isoflop.study.planned import PlannedRun

STEP_FLOPS = {"vit": 5e7, "poolformer": 1e7, "nfnet": 1e8}
"""The largest step, in training FLOPs, at which a stack of eight still gained 1.3× or more."""
FEWEST, MOST = 6, 12


@dataclass(frozen=True)
class Pack:
    """A run's place among those that it is trained with, `size` in all."""

    name: str
    size: int
    place: int


def packs(runs: Sequence[PlannedRun], workers: int) -> dict[str, Pack]:
    """The packs of `runs`, by run id; those that are trained alone are left out.

    A pure function of its arguments, so that a study that was stopped finds its packs again, and with them its bits.
    """
    most = min(MOST, math.ceil(len(runs) / workers))
    alike: dict[str, list[PlannedRun]] = {}
    for run in runs:
        if gains(run):
            alike.setdefault(_likeness(run.config), []).append(run)
    found: dict[str, Pack] = {}
    for group in alike.values():
        parts = math.ceil(len(group) / most)
        for part in range(parts):
            pack = group[part::parts]
            if len(pack) >= FEWEST:
                found |= {run.run_id: Pack(pack[0].run_id, len(pack), place) for place, run in enumerate(pack)}
    return found


def gains(run: PlannedRun) -> bool:
    """Whether runs like this are faster together. Only what the stack can do and was measured for: a ladder's preset as
    it is, with labels, in single precision."""
    config = run.config
    return (
        run.flops_per_image * config.batch_size <= STEP_FLOPS.get(run.family, 0.0)
        and run.role == "ladder"
        and isinstance(config.objective, SupervisedConfig)
        and config.precision == "float32"
        and not config.model.overrides
        and config.start is None
        and config.parallel == ParallelConfig()
    )


def _likeness(config: RunConfig) -> str:
    """The same for runs that differ in learning rate and seed alone."""
    optim = config.optim.model_copy(update={"learning_rate": 1.0})
    return canonical_json(config.model_copy(update={"seed": 0, "optim": optim}))
