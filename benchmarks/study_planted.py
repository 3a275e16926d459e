"""Grids of runs that follow planted laws, in the shape of `study_grid.csv`: worlds that the planner has not met."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from study_grid import BUDGETS, MIN_STEPS, SEEDS, STUDY

from isoflop.config import StudyConfig, parse
from isoflop.study.planned import Catalogue


@dataclass(frozen=True)
class World:
    """What is planted.

    Attributes:
        families: family → (E, A, B at 1e5 FLOPs an image and 2e4 images, α, β, best rate there).
        noise: standard deviation of log loss of a run of 150 steps; it falls with the fourth root of the steps.
        bend: how much faster than the law the loss falls: exp(-bend·log(C / lowest budget)^1.5).
    """

    families: dict[str, tuple[float, float, float, float, float, float]]
    noise: float = 0.04
    bend: float = 0.0

    def loss(self, family: tuple[float, ...], n: float, d: float, climbed: float) -> float:
        """Without noise at the best rate; `climbed` is the compute over that of the lowest rung."""
        e, a, b, alpha, beta, _ = family
        fall = math.exp(-self.bend * math.log(max(climbed, 1.0)) ** 1.5)
        return (e + a * (n / 1e5) ** -alpha + b * (d / 2e4) ** -beta) * fall

    def best_rate(self, family: str, n: float, d: float) -> float:
        return self.families[family][-1] * (n / 1e5) ** -0.15 * (d / 2e4) ** -0.05

    def measured(self, family: str, n: float, d: float, rate: float) -> float:
        """Without noise at any rate."""
        off = math.log(rate / self.best_rate(family, n, d))
        bowl = 0.03 * off**2 * (1.0 + 0.5 * math.tanh(off))  # steeper on the side of high rates
        return self.loss(self.families[family], n, d, n * d / BUDGETS[0]) * math.exp(bowl)


STEEP = {
    "vit": (0.4, 0.35, 1.7, 0.5, 0.3, 0.03),
    "poolformer": (0.15, 0.3, 1.05, 0.6, 0.47, 0.06),
    "nfnet": (0.35, 0.6, 0.9, 0.65, 0.43, 1.2),
}
CLOSE = {
    "vit": (1.0, 0.35, 0.6, 0.35, 0.4, 0.03),
    "poolformer": (1.0, 0.37, 0.62, 0.37, 0.4, 0.05),
    "nfnet": (1.0, 0.33, 0.6, 0.33, 0.42, 0.9),
}
CROSSING = {
    "vit": (0.9, 0.35, 0.85, 0.35, 0.55, 0.03),
    "poolformer": (1.0, 0.35, 0.55, 0.35, 0.33, 0.05),
    "nfnet": (1.0, 0.35, 0.6, 0.35, 0.4, 0.9),
}
WORLDS = {
    "steep": World(STEEP, noise=0.05),  # like the lowest rungs of the real grid
    "bent": World(STEEP, noise=0.05, bend=0.02),
    "crossing": World(CROSSING),
    "close": World(CLOSE),
}


def planted_rows(name: str) -> Iterator[dict[str, str]]:
    """The table of the world called `name`."""
    world = WORLDS[name]
    catalogue = Catalogue(parse(STUDY, StudyConfig))
    rng = np.random.default_rng(0)
    for family, options in catalogue.config.families.items():
        for model in catalogue.presets(family):
            if model not in options.sizes:  # type: ignore[operator]
                continue
            n = catalogue.flops_per_image(family, model)
            for budget in BUDGETS:
                steps = catalogue.steps(family, model, budget)
                if steps < MIN_STEPS:
                    continue
                d = steps * catalogue.config.batch_size
                for rate in options.learning_rates or ():
                    end = world.measured(family, n, d, rate)
                    for seed in range(len(SEEDS)):
                        noise = world.noise * (150 / steps) ** 0.25 * rng.standard_normal()
                        yield {
                            "family": family, "model": model, "budget": str(budget), "learning_rate": str(rate),
                            "seed": str(seed), "heldout_loss": str(end * math.exp(noise)),
                        }  # fmt: skip
