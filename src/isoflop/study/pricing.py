"""What runs will cost in time: measured on this machine, not looked up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isoflop.config import StudyConfig
from isoflop.data import batches
from isoflop.study.learning_rates import first_rates, transfers
from isoflop.study.planned import Catalogue
from isoflop.study.rungs import MIN_STEPS
from isoflop.train import build_objective
from isoflop.train.device import choose_device, to_device
from isoflop.train.ranks import Ranks
from isoflop.train.schedules import trunk_steps
from isoflop.train.step import Step

PROBE_STEPS = 3
Seconds = Mapping[tuple[str, str], float]  # (family, model) → seconds an image


def measure_seconds_per_image(
    catalogue: Catalogue, sizes: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, str], float]:
    """Seconds of training an image, for each family and size, from a few steps on one thread of this machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {(family, model): _probe(catalogue, family, model) for family, names in sizes.items() for model in names}
    finally:
        torch.set_num_threads(threads)


def _probe(catalogue: Catalogue, family: str, model_name: str) -> float:
    config = catalogue.run(family, model_name, catalogue.budgets[-1], 1e-3).config
    device = choose_device(config.device)
    objective = to_device(build_objective(config, catalogue.source), device)
    step = Step(objective, catalogue.source, config, Ranks(device))
    seconds = []
    feed = batches(
        catalogue.source,
        seed=0,
        batch_size=config.batch_size,
        start_step=0,
        stop_step=PROBE_STEPS + 1,
        augment=config.data.augment,
        randaugment=config.data.randaugment,
        interpolation=config.data.interpolation,
        workers=0,
    )
    began = time.perf_counter()
    for batch in feed:
        step(batch, config.optim.learning_rate)
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
    return min(seconds[1:]) / config.batch_size  # the first step pays for warming up


def corrected(
    seconds: Seconds, measured: Mapping[tuple[str, str], tuple[float, float]]
) -> dict[tuple[str, str], float]:
    """`seconds` as finished runs have corrected them; `measured` is (images, seconds of training) by family and model.

    A model that has finished runs costs what they took. The others of its family are as much dearer than was thought
    as those were, and other families as much as all were.
    """
    known = {key: (images, spent) for key, (images, spent) in measured.items() if images > 0 and spent > 0}

    def factor(families: set[str]) -> float | None:
        both = [(n * seconds[key], spent) for key, (n, spent) in known.items() if key in seconds and key[0] in families]
        return sum(spent for _, spent in both) / sum(thought for thought, _ in both) if both else None

    every = factor({family for family, _ in known}) or 1.0
    factors = {family: factor({family}) or every for family, _ in seconds}
    prices = {key: price * factors[key[0]] for key, price in seconds.items()}
    return prices | {key: spent / images for key, (images, spent) in known.items()}


@dataclass(frozen=True)
class RungForecast:
    """What one rung is expected to take: runs, FLOPs (steps shared with the rung below left out), core-seconds."""

    budget: float
    runs: int
    flops: float
    core_seconds: float


def forecast(
    config: StudyConfig, catalogue: Catalogue, sizes: Mapping[str, tuple[str, ...]], seconds: Seconds
) -> list[RungForecast]:
    """The whole ladder before it starts. Runs of a widened learning-rate grid come on top; they cannot be foreseen."""
    rungs: list[RungForecast] = []
    for rung, budget in enumerate(catalogue.budgets):
        runs, flops, core_seconds = 0, 0.0, 0.0
        for family, names in sizes.items():
            first = first_rates(config, catalogue, family, names)
            for model in names:
                steps = catalogue.steps(family, model, budget)
                if steps < MIN_STEPS:
                    continue
                below = catalogue.steps(family, model, catalogue.budgets[rung - 1]) if rung else 0
                several = 1 if transfers(config, family) else 2
                count = len(first[model]) if below < MIN_STEPS else several if rung == 1 else 1
                schedule = catalogue.run(family, model, budget, 1e-3).config.schedule
                shared = trunk_steps(schedule, below) if below >= MIN_STEPS else 0
                images = (count * steps - count * shared) * config.batch_size
                runs += count
                flops += images * catalogue.flops_per_image(family, model)
                evaluated = count * catalogue.heldout / 3  # forward only
                core_seconds += (images + evaluated) * seconds[family, model]
        rungs.append(RungForecast(budget, runs, flops, core_seconds))
    return rungs
