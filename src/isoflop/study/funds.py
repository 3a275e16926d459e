"""What a study may cost: FLOPs, device-hours or money; the answers' share is set aside before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.models import family_ladder
from isoflop.report.rows import Row
from isoflop.report.savings import total_cost
from isoflop.study.planned import Catalogue
from isoflop.study.rungs import MIN_STEPS

RUNGS_RATIO = 2.6
"""Between the rungs that the planner chooses: about what sizes and learning rates can be carried across."""
RUNGS_SPAN = 64.0
"""Between the lowest and the highest of them, if the smallest presets train that briefly."""
TARGET_DISTANCE = 3.0
"""The highest rung stays this factor below the target: nearer, the ladder would cost more than it decides."""
LADDER_RUNS = 1.6
"""How often the highest rung's budget each starting size is allowed for, in all: lower rungs and searches included."""
SHORTEST = 3 * MIN_STEPS  # steps of the smallest preset on the lowest rung that the planner chooses


@dataclass(frozen=True)
class Funds:
    """What there is, what the answers take, and what training costs, all in `unit` (FLOPs, device-hours, money).

    `per_flop` is the price of a training FLOP by (family, preset measured), `per_image` of evaluating an image.
    """

    unit: str
    total: float
    reserved: float
    flops: Mapping[tuple[str, str], float]
    per_flop: Mapping[tuple[str, str], float]
    evaluated: int
    per_second: float = 0.0
    """of a worker; 0 where the limit is in FLOPs"""

    @property
    def allowance(self) -> float:
        """What the ladder may cost."""
        return self.total - self.reserved

    def spent(self, rows: Sequence[Row]) -> float:
        """What the runs in `rows` have cost: measured seconds (or FLOPs) of training, and evaluation by its price."""
        flops, seconds = total_cost(rows)
        if self.unit == "FLOPs":
            return flops
        judged = [row for row in rows if row["status"] == "done"]
        evaluation = sum(self.price_of_evaluation(row["family"], row["flops_per_image"]) for row in judged)
        return seconds * self.per_second + evaluation

    def price(self, family: str, flops_per_image: float) -> float:
        """The price of training on an image, at the efficiency of the nearest preset of the family measured."""
        return flops_per_image * self._efficiency(family, flops_per_image)

    def price_of_evaluation(self, family: str, flops_per_image: float) -> float:
        """The price of a run beside its steps: its evaluation. Training FLOPs do not count it."""
        return 0.0 if self.unit == "FLOPs" else self.evaluated * self.price(family, flops_per_image) / 3

    def _efficiency(self, family: str, flops_per_image: float) -> float:
        near = [key for key in self.per_flop if key[0] == family]
        return self.per_flop[min(near, key=lambda key: abs(math.log(self.flops[key] / flops_per_image)))]


def funds_of(
    config: StudyConfig, catalogue: Catalogue, seconds: Mapping[tuple[str, str], float], *, begun: bool = False
) -> Funds:
    """The funds of a study with a limit, given seconds an image; StudyError if the answers exceed it, unless it has
    `begun`: the limit then leaves nothing more to the ladder."""
    study = config.study
    flops = {key: catalogue.flops_per_image(*key) for key in seconds}
    if study.budget is not None:
        unit, total, scale = "FLOPs", study.budget, None
    elif study.device_hours is not None:
        unit, total, scale = "device-hours", study.device_hours, 1 / 3600
    else:
        assert study.money is not None
        assert study.price_per_hour is not None
        unit, total, scale = "money", study.money, study.price_per_hour / 3600
    per_flop = {key: 1.0 if scale is None else seconds[key] / flops[key] * scale for key in seconds}
    reserved = study.finals * study.target_budget * max(per_flop.values())
    if reserved >= total and not begun:
        raise StudyError(
            f"study.{_key(unit)} = {total:g} leaves nothing to measure: training the answer alone "
            f"({study.finals} × {study.target_budget:g} FLOPs) takes {reserved:.2g} {unit} on this machine; "
            f"raise it or lower target_budget"
        )
    return Funds(unit, total, reserved, flops, per_flop, catalogue.heldout, scale or 0.0)


def _key(unit: str) -> str:
    return {"FLOPs": "budget", "device-hours": "device_hours", "money": "money"}[unit]


def choose_budgets(config: StudyConfig, catalogue: Catalogue, flops: float) -> tuple[float, ...]:
    """The rungs of a ladder that may cost `flops` in all, below the target; StudyError when that is too little.

    The highest is what every starting size could be trained with, though no more than the target divided by
    `TARGET_DISTANCE`; the lowest a factor of `RUNGS_SPAN` below it, or what the smallest presets need.
    """
    starting, floors = 0, []
    for family, options in config.families.items():
        names = options.sizes if isinstance(options.sizes, tuple) else family_ladder(family)
        starting += len(options.sizes) if isinstance(options.sizes, tuple) else options.sizes
        smallest = min(catalogue.flops_per_image(family, name) for name in names)
        floors.append(SHORTEST * config.batch_size * smallest)
    top = min(config.study.target_budget / TARGET_DISTANCE, flops / (LADDER_RUNS * starting))
    bottom = max(*floors, top / RUNGS_SPAN) if len(floors) > 1 else max(floors[0], top / RUNGS_SPAN)
    if top < 4 * bottom:
        if config.study.target_budget / TARGET_DISTANCE < 4 * bottom:
            raise StudyError(
                f"study.target_budget = {config.study.target_budget:g} is too near to what the smallest presets need "
                f"({bottom:.2g} FLOPs for {SHORTEST} steps): a ladder below it has no room; "
                f"take at least {4 * TARGET_DISTANCE * bottom:.2g}, or smaller sizes"
            )
        raise StudyError(
            f"the study's limit leaves {flops:.2g} FLOPs for the ladder, but {starting} sizes from {bottom:.2g} FLOPs "
            f"a run need about {4 * bottom * LADDER_RUNS * starting:.2g}: raise it, or take fewer families or sizes"
        )
    count = max(3, 1 + math.ceil(math.log(top / bottom) / math.log(RUNGS_RATIO) - 1e-9))
    ratio = (top / bottom) ** (1 / (count - 1))
    return tuple(float(f"{bottom * ratio**k:.2g}") for k in range(count))
