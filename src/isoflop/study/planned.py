"""A planned run: its identity, its place on the ladder, and its expected cost."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

from isoflop.config import RunConfig, StudyConfig, canonical_json, config_hash
from isoflop.data import Source, open_split
from isoflop.errors import StudyError
from isoflop.models import Cost, family_ladder, ladder_of
from isoflop.models.presets import LADDERS
from isoflop.objectives import objective_cost
from isoflop.train.optim.build import TRUNK_SCHEDULES
from isoflop.train.optim.gradients import PASSES

WARMUP_SHARE = 0.2  # of the steps of a model's shortest run: the most that warm-up may take on the ladder


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study. `flops_per_image` are training FLOPs (3 × 2 × MACs), `budget` the rung it belongs to."""

    family: str
    model: str
    budget: float
    role: str  # "ladder" or "final"
    flops_per_image: float
    parameters: int
    config: RunConfig
    begun_at: str = ""
    """Where the data lay when the study began, if they have moved since: runs keep their names."""

    @property
    def run_id(self) -> str:
        return config_hash(self._named(self.config))

    def _named(self, config: RunConfig) -> RunConfig:
        source = self.begun_at or config.data.source
        return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})

    @property
    def images(self) -> int:
        return self.config.images

    @property
    def train_flops(self) -> float:
        return self.images * self.flops_per_image

    @property
    def trunk_id(self) -> str | None:
        """What runs share that differ only in length; None for a schedule without a trunk."""
        if self.config.schedule.name not in TRUNK_SCHEDULES:
            return None
        schedule = self.config.schedule.model_copy(update={"cooldown": 0.0})
        same = self.config.model_copy(update={"steps": 1, "schedule": schedule})
        return hashlib.sha256(canonical_json(self._named(same)).encode()).hexdigest()[:12]


class Catalogue:
    """What the study's models cost on its data, each counted once; and how its runs are made."""

    def __init__(self, config: StudyConfig, begun_at: str = "") -> None:
        self.config = config
        self.begun_at = begun_at
        self.budgets: tuple[float, ...] = config.study.budgets or ()
        self.source: Source = open_split(config.data, "train")
        if len(self.source) < config.batch_size:
            raise StudyError(
                f"{config.data.source}: {len(self.source)} training images are fewer than one batch of "
                f"{config.batch_size}; "
                "lower batch_size or give it more images"
            )
        self.heldout = len(open_split(config.data, "heldout"))  # of few stored images a fifth at most
        self._costs: dict[tuple[str, str], Cost] = {}

    def on(self, budgets: tuple[float, ...]) -> Catalogue:
        """The same models on other rungs: those that were chosen for a study that names none."""
        other = copy.copy(self)
        other.budgets = budgets
        return other

    def of(self, config: StudyConfig) -> Catalogue:
        """The same models for a configuration that differs in nothing that they cost."""
        other = copy.copy(self)
        other.config = config
        return other

    def presets(self, family: str) -> tuple[str, ...]:
        """The family's ladder and the sizes named for it, small to large.

        A variant under a name of its own has the ladder that its sizes are from, if there is one.
        """
        sizes, side = self.config.families[family].sizes, self.config.data.image_size
        names = set(sizes) if isinstance(sizes, tuple) else set()
        if family in LADDERS or not names:
            names.update(family_ladder(family, side))
        for name in tuple(names):
            names.update(ladder_of(name, side))
        return tuple(sorted(names, key=lambda name: (self.flops_per_image(family, name), name)))

    def cost(self, family: str, model: str) -> Cost:
        """Parameters and MACs of preset `model` as `family` builds it, with what the objective adds in training."""
        key = (family, model)
        if key not in self._costs:
            self._costs[key] = objective_cost(
                self.config.objective,
                model,
                num_classes=self.source.num_classes or 1,
                image_size=self.config.data.image_size,
                in_channels=self.source.channels,
                **self.config.families[family].model,
            )
        return self._costs[key]

    def flops_per_image(self, family: str, model: str) -> float:
        """Training FLOPs an image: 3 × forward, a FLOP being half a multiply-add; twice that where SAM is used."""
        passes = PASSES if self.config.families[family].optim.sam else 1
        return float(self.cost(family, model).train_flops_per_image) * passes

    def steps(self, family: str, model: str, budget: float) -> int:
        """How many steps of `model` `budget` training FLOPs buy, rounded."""
        return round(budget / self.flops_per_image(family, model) / self.config.batch_size)

    def run(
        self,
        family: str,
        model: str,
        budget: float,
        learning_rate: float,
        *,
        role: str = "ladder",
        threads: int = 1,
        number: int = 0,
    ) -> PlannedRun:
        """The run of `model` at `budget`; its warm-up is the same at every budget, so that trunks are shared.

        `number` tells copies of a run apart: each has a seed of its own.
        """
        shortest = self.steps(family, model, self.budgets[0])
        warmup = min(self.config.families[family].schedule.warmup, max(1, int(WARMUP_SHARE * shortest)))
        config = self.config.run_config(
            family,
            model=model,
            steps=self.steps(family, model, budget),
            learning_rate=learning_rate,
            warmup=warmup,
            seed=self.config.study.seed + number,
        ).model_copy(update={"threads": threads})
        counted = self.cost(family, model)
        return PlannedRun(
            family=family,
            model=model,
            budget=budget,
            role=role,
            flops_per_image=self.flops_per_image(family, model),
            parameters=counted.parameters,
            config=config,
            begun_at=self.begun_at,
        )
