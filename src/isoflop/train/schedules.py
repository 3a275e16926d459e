"""Learning-rate schedules: the factor on the peak rate at each step, as pure functions.

A *trunk* schedule (constant, reciprocal √) knows nothing of its end until the cooldown begins, so runs of different
length share every step before it, bit for bit: that is what lets budgets branch off one trunk. The others have none.
"""

from __future__ import annotations

import math

from isoflop.config import ScheduleConfig

TRUNK_SCHEDULES = frozenset({"constant", "rsqrt"})
_POLY = 0.9


def cooldown_steps(schedule: ScheduleConfig, steps: int) -> int:
    """The number of final steps over which a trunk schedule falls linearly to zero; 0 for those that have none."""
    return round(schedule.cooldown * steps) if schedule.name in TRUNK_SCHEDULES else 0


def trunk_steps(schedule: ScheduleConfig, steps: int) -> int:
    """The number of first steps that do not depend on `steps`: what runs of different length share."""
    return steps - cooldown_steps(schedule, steps) if schedule.name in TRUNK_SCHEDULES else 0


def rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on the peak learning rate at `step` of 0 … `steps` − 1; in (0, 1].

    Reciprocal √ and cooldown as in arXiv 2106.04560: 1 / √(1 + (step − warmup) / timescale), times
    min(1, step / warmup), times min(1, (total − step) / cooldown). Steps count from 1 in the warm-up, so that the
    first update is not lost. Cosine: half a period from the end of the warm-up to the last step (arXiv 1608.03983), or
    to the floor and the steps that stay there. Steps: a tenth after each of `drops` (arXiv 1912.11370). Poly:
    (1 − step / total)^0.9 (arXiv 1606.00915); with the power 1, that is a constant rate that cools down all along.
    """
    factor = 1.0
    if step + 1 < schedule.warmup:
        factor = schedule.warmup_from + (1.0 - schedule.warmup_from) * (step + 1) / schedule.warmup
    past_warmup = max(0, step - schedule.warmup)
    if schedule.name == "cosine":
        falling = max(1, steps - schedule.warmup - round(schedule.hold * steps))
        wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, past_warmup / falling)))
        return factor * (schedule.floor + (1.0 - schedule.floor) * wave)
    if schedule.name == "steps":
        return factor * 0.1 ** sum(step >= drop * steps for drop in schedule.drops)
    if schedule.name == "poly":
        return float(factor * (1.0 - step / steps) ** _POLY)
    if schedule.name == "rsqrt":
        factor /= math.sqrt(1.0 + past_warmup / schedule.timescale)
    cooldown = cooldown_steps(schedule, steps)
    return factor * min(1.0, (steps - step) / cooldown) if cooldown else factor
