"""How a run is doing halfway, and whether it may go on.

What the losses were on the way is kept in bins of the run's own state, so that it survives kills and comes along from a
trunk: a run that was resumed, or began where a shorter one stopped, looks back on the same curve as one that did not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.5
"""Of its steps: where a run is looked at."""
LOOK_BACK = 0.5
"""Of these: from there on their losses count."""
Curve = list[list[float]]
"""Bins, each [its last step, the sum of the losses, how many they are]."""


@dataclass(frozen=True)
class Limit:
    """When a run is stopped: at `step`, if its loss there (see `loss_at`) is above `loss`.

    It would end with about exp(`offset` + `slope` · log of that loss), and would have to reach `aim`.
    """

    step: int
    loss: float
    offset: float
    slope: float
    aim: float

    def expected(self, loss: float) -> float:
        """What a run with that loss at `step` would end with."""
        return math.exp(self.offset + self.slope * math.log(loss))

    def exceeded(self, curve: Curve, step: int) -> bool:
        """Whether a run that has taken `step` steps is to be stopped. Its answer is the same at every later step."""
        return step >= self.step and loss_at(curve, self.step) > self.loss


def halfway(steps: int) -> int:
    """The step at which a run of so many is looked at."""
    return round(SHARE * steps)


def note(curve: Curve, step: int, loss: float) -> None:
    """Adds the training loss of step `step` (from 1). A bin is a tenth as long as the steps before it."""
    if not curve:
        curve.append([1.0, 0.0, 0.0])
    while step > curve[-1][0]:
        last = int(curve[-1][0])
        curve.append([float(last + max(1, last // 10)), 0.0, 0.0])
    curve[-1][1] += loss
    curve[-1][2] += 1


def loss_at(curve: Curve, step: int) -> float:
    """The mean training loss over the bins that end by `step` and begin after half of it; NaN where there are none."""
    total = count = 0.0
    for (start, *_), (end, losses, counted) in zip([[0.0], *curve], curve, strict=False):
        if end <= step and start >= LOOK_BACK * step:
            total, count = total + losses, count + counted
    return total / count if count else math.nan
